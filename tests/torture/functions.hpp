// The probed functions. Each keeps its mangled name, is exported, and is compiled as if nothing were known about its
// callers; what the compiler does inside it is the point.
#pragma once
#include <setjmp.h>

#include <cstdint>

#define PROBED [[gnu::noipa, gnu::visibility("default")]]

namespace torture {

struct Small {
    int a, b;
};
struct Large {
    long v[12];
};
struct Failure {
    virtual ~Failure() = default;
    int code = 0;
    explicit Failure(int code) : code(code) {}
};
struct SpecialFailure : Failure {
    using Failure::Failure;
};

// A function that calls something while it is open.
using Inside = int (*)(int);

// Leaves, return types, frames
PROBED int small(int n);
PROBED int work(int us);
PROBED void nothing(int n);
PROBED bool is_odd(int n);
PROBED const char *pointer(int n);
PROBED double real(int n);
PROBED Small pair(int n);
PROBED Large large(int n);
PROBED __int128 wide(int n);
PROBED int many_arguments(int n, int b, int c, int d, int e, int f, long g, double h);
PROBED int variadic(int n, ...);
PROBED int many_returns(int n);
PROBED int jump_table(int n);
PROBED int cold_return(int n);
PROBED int cold_throw(int n);
PROBED int vla_frame(int n, Inside inside);
PROBED int alloca_frame(int n, Inside inside);
PROBED int aligned_frame(int n, Inside inside);
PROBED int big_frame(int n, Inside inside);
PROBED int array_frame(int n, Inside inside);
PROBED int around(int n, Inside inside);

// Recursion
PROBED int recurse(int n);
PROBED int ping(int n);
PROBED int pong(int n);
PROBED int fibonacci(int n);

// Tail calls
PROBED int tail_stub(int us);
PROBED int tail_after_work(int us);
PROBED int tail_sometimes(int n);
PROBED int tail_to_probed(int us);
PROBED int tail_even(int n);
PROBED int tail_odd(int n);
PROBED int tail_register(int n, Inside inside);
PROBED int tail_table(int n);
PROBED int tail_library(unsigned us);

// Exceptions
PROBED int throws_int(int n);
PROBED int throws_failure(int n);
PROBED int throws_runtime_error(int n);
PROBED int throws_in_library(int n);
PROBED int passes(int n, Inside inside);
PROBED int passes_deep(int n, Inside inside);
PROBED int rethrows(int n, Inside inside);
PROBED int translates(int n, Inside inside);
PROBED int catches(int n, Inside inside);
PROBED int catches_nested(int n);
PROBED int cleans_up(int n, Inside inside);
PROBED int promises_nothing_thrown(int n, Inside inside) noexcept;

// Jumps
PROBED int jumps(jmp_buf *to, int n);
PROBED int sigjumps(sigjmp_buf *to, int n);
PROBED int catches_jump(int n);

// Signals
PROBED int handler_work(int n);
PROBED int raises_signal(int signal);

// Processes, threads
PROBED int forks(int n, bool child_goes_on);
PROBED int vforks(const char *program);
PROBED int runs(int n, void (*end)(int));

extern "C" PROBED int torture_c_name(int n);

} // namespace torture
