#include "functions.hpp"

#include <alloca.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include <cstdarg>
#include <stdexcept>
#include <vector>

#include "record.hpp"
#include "spin.hpp"

#define UNPROBED [[gnu::noipa]]

namespace torture {

static thread_local volatile int sink; // a thread's own: results do not depend on what others do

// ---- leaves, return types --------------------------------------------------------------------------------------

int small(int n) { return n * 3 + 1; }
int work(int us) {
    spin(us);
    return us ^ 0x5a5a;
}
void nothing(int n) { sink = n; }
bool is_odd(int n) { return n & 1; }
const char *pointer(int n) {
    static const char *const names[] = {"zero", "one", "two", "three"};
    return names[n & 3];
}
double real(int n) { return n / 8.0; }
Small pair(int n) { return {n, n + 1}; }
Large large(int n) {
    Large l;
    for (int i = 0; i < 12; i++) l.v[i] = n * i;
    return l;
}
__int128 wide(int n) { return (__int128(n) << 70) + n; }
int many_arguments(int n, int b, int c, int d, int e, int f, long g, double h) {
    return n + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + int(7 * g) + int(8 * h);
}
int variadic(int n, ...) {
    va_list list;
    va_start(list, n);
    int sum = 0;
    for (int i = 0; i < n; i++) sum += i % 2 ? int(va_arg(list, double)) : va_arg(list, int);
    va_end(list);
    return sum;
}
extern "C" int torture_c_name(int n) { return n * 3 + 2; }

int many_returns(int n) {
    if (n == 0) return 17;
    sink = n;
    if (n == 1) return sink + 1;
    if (n == 2) {
        sink = sink + 2;
        return sink * 2;
    }
    for (int i = 0; i < n; i++) {
        if (i == 5) return i + sink;
        sink = sink + i;
        if (sink % 7 == 3) return sink;
    }
    if (n == 4) {
        sink = 4;
        return 44;
    }
    if (n > 9) return -n;
    return sink;
}

UNPROBED static int step_a(int n) { return n + 1; }
UNPROBED static int step_b(int n) { return n * 2; }
UNPROBED static int step_c(int n) { return n - 3; }

int jump_table(int n) {
    int r = n;
    switch (n) {
    case 0: r = step_a(n) + 1; break;
    case 1: r = step_b(n) + 3; sink = r; break;
    case 2: r = step_c(n) * 5; break;
    case 3: sink = 3; return step_a(step_b(n)) + 9;
    case 4: r = step_b(step_c(n)) ^ 7; break;
    case 5: sink = step_c(n); r = sink + 1; break;
    case 6: return -6;
    case 7: r = step_a(n) * step_b(n); break;
    case 8: r = step_c(step_c(n)); break;
    case 9: throw std::runtime_error("nine");
    default: sink = n; r = 99; break;
    }
    return r + sink % 2;
}

// The unlikely side ends in a `ret` of its own, in the .cold fragment where the compiler makes one.
[[gnu::cold, gnu::noipa]] static int unlikely_work(int n) { return n * 1000; }
int cold_return(int n) {
    if (__builtin_expect(n > 100, 0)) {
        int a = unlikely_work(n);
        sink = a;
        for (int i = 0; i < 3; i++) a += unlikely_work(i + sink % 5);
        return a;
    }
    sink = n;
    return n + 1;
}
[[gnu::cold, gnu::noipa, noreturn]] static void unlikely_throw(int n) { RAISE(Failure, n); }
int cold_throw(int n) {
    std::vector<int> values(size_t(n % 10 + 1), n);
    if (n > 100) unlikely_throw(n);
    return values[0] + step_a(n);
}

// ---- frames ----------------------------------------------------------------------------------------------------

int around(int n, Inside inside) {
    int r = inside(n);
    sink = r;
    return r + 1;
}
int vla_frame(int n, Inside inside) {
    char room[n * 100 + 1];
    memset(room, n, sizeof room);
    int r = inside(n - 1);
    return r + room[n * 50];
}
int alloca_frame(int n, Inside inside) {
    int r = 0;
    for (int i = 1; i <= 3; i++) {
        char *room = static_cast<char *>(alloca(size_t(i * n * 64)));
        memset(room, i, size_t(i * n * 64));
        r += inside(n - 1) + room[i];
        if (n == 7 && i == 2) return r; // a second exit, with the stack deeper
    }
    return r;
}
int aligned_frame(int n, Inside inside) {
    alignas(128) volatile char room[256];
    room[n] = char(n);
    int r = inside(n - 1) + int(reinterpret_cast<uintptr_t>(room) % 128);
    return r + room[n];
}
int big_frame(int n, Inside inside) {
    volatile char room[3 * 4096];
    room[n] = char(n);
    room[3 * 4096 - 1 - n] = char(n);
    return inside(n - 1) + room[n] + room[3 * 4096 - 1 - n];
}
int array_frame(int n, Inside inside) { // has a stack protector where there is one
    char room[64];
    snprintf(room, sizeof room, "%d", n);
    int r = inside(n - 1) + int(strlen(room));
    if (r % 5 == 0) return -r;
    return r;
}

// ---- recursion -------------------------------------------------------------------------------------------------

int recurse(int n) {
    if (n <= 0) return 1;
    int r = CALL(recurse, n - 1);
    sink = r;
    return r + n;
}
int ping(int n) { return n <= 0 ? 1 : CALL(pong, n - 1) + 1; }
int pong(int n) { return n <= 0 ? 2 : CALL(ping, n - 1) * 2 % 1000003; }
int fibonacci(int n) { return n < 2 ? n : CALL(fibonacci, n - 1) + CALL(fibonacci, n - 2); }

// ---- tail calls ------------------------------------------------------------------------------------------------

UNPROBED int tail_work(int us) {
    spin(us);
    return us / 3;
}
int tail_stub(int us) { return tail_work(us); }
UNPROBED static int half_of_it(int us) {
    std::vector<int> values(size_t(us % 7 + 1), us);
    spin(values[0] / 2);
    return values[0] / 2;
}
int tail_after_work(int us) {
    sink = half_of_it(us);
    return tail_work(sink);
}
int tail_sometimes(int n) {
    if (n % 3 == 0) return tail_work(n);
    if (n % 3 == 1) {
        sink = n;
        return n * 2;
    }
    int r = step_a(n);
    sink = r;
    return step_b(r);
}
int tail_to_probed(int us) {
    sink = us;
    return work(us + 1);
}
int tail_even(int n) {
    sink = n;
    if (n == 0) return 1;
    return tail_odd(n - 1);
}
int tail_odd(int n) {
    sink = n;
    if (n == 0) return 0;
    return tail_even(n - 1);
}
int tail_register(int n, Inside inside) {
    sink = n;
    return inside(n);
}
int tail_table(int n) {
    static int (*const volatile table[])(int) = {tail_work, step_a, step_b};
    return table[n % 3](n);
}
int tail_library(unsigned us) { return usleep(us); }

// ---- exceptions ------------------------------------------------------------------------------------------------

int throws_int(int n) {
    if (n > 0) RAISE(int, n);
    return 0;
}
int throws_failure(int n) {
    if (n % 2) RAISE(Failure, n);
    if (n > 0) RAISE(SpecialFailure, n);
    return n;
}
int throws_runtime_error(int n) {
    std::vector<int> values(5, n);
    if (values[2] > 0) RAISE(std::runtime_error, "torture");
    return values[1];
}
int throws_in_library(int n) { // thrown by code in libstdc++
    std::vector<int> values(3, 1);
    if (n > 2) record::flies("std::out_of_range");
    return values.at(size_t(n));
}
int passes(int n, Inside inside) { return inside(n) + 1; }
UNPROBED static int unprobed_frame(int n, Inside inside) {
    std::vector<int> values(10, n);
    return inside(n) + values[3];
}
int passes_deep(int n, Inside inside) {
    std::vector<int> values(20, n);
    return unprobed_frame(n, inside) + values[3];
}
int rethrows(int n, Inside inside) {
    try {
        return inside(n);
    } catch (const Failure &) {
        record::caught();
        record::flies(n % 2 ? "torture::Failure" : "torture::SpecialFailure");
        throw;
    }
}
int translates(int n, Inside inside) {
    try {
        return inside(n);
    } catch (const std::exception &) {
        record::caught();
        RAISE(SpecialFailure, n);
    }
}
int catches(int n, Inside inside) {
    try {
        return inside(n);
    } catch (const Failure &f) {
        record::caught();
        return CALL(small, f.code) + 5;
    } catch (int i) {
        record::caught();
        return i + 6;
    } catch (const std::exception &e) {
        record::caught();
        return int(strlen(e.what())) + 7;
    }
}
int catches_nested(int n) {
    int r = 0;
    try {
        CALL(throws_failure, n);
    } catch (const Failure &f) {
        record::caught();
        r += f.code;
        try {
            CALL(throws_int, n + 1);
        } catch (int i) {
            record::caught();
            r += i * 10;
            try {
                CALL(passes, n, [](int n) { return CALL(throws_runtime_error, n); });
            } catch (const std::runtime_error &) {
                record::caught();
                r += CALL(small, n);
            }
        }
    }
    return r;
}
// Its destructor works, also while an exception passes: probed calls, one of which throws and is caught.
struct Cleaner {
    int n;
    ~Cleaner() {
        sink = sink + CALL(small, n);
        try {
            CALL(passes, n, [](int n) { return CALL(throws_failure, n); });
        } catch (const Failure &) {
            record::caught();
        }
        CALL(work, 200);
    }
};
int cleans_up(int n, Inside inside) {
    Cleaner cleaner{n + 1};
    return inside(n) + 1;
}
int promises_nothing_thrown(int n, Inside inside) noexcept { return inside(n); }

// ---- jumps -----------------------------------------------------------------------------------------------------

int jumps(jmp_buf *to, int n) {
    sink = n;
    if (n > 0) longjmp(*to, n);
    return 3;
}
int sigjumps(sigjmp_buf *to, int n) {
    sink = n;
    if (n > 0) siglongjmp(*to, n);
    return 3;
}
int catches_jump(int n) {
    jmp_buf here;
    int mark = record::mark();
    int how = setjmp(here);
    if (how == 0) {
        CALL(passes, n, [](int n) { return n; });
        static thread_local jmp_buf *to;
        to = &here;
        CALL(around, n, [](int n) { return CALL(jumps, to, n); });
    }
    record::jumped(mark);
    return CALL(small, how) + 1;
}

// ---- signals, processes ----------------------------------------------------------------------------------------

int handler_work(int n) {
    spin(100);
    return n + 1;
}
int raises_signal(int signal) {
    sink = signal;
    raise(signal);
    return sink + 1;
}

int forks(int n, bool child_goes_on) {
    pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) {
        CALL(small, n);
        CALL(around, n, [](int n) { return CALL(recurse, n % 10); });
        if (child_goes_on) return -1;
        record::process_fate("process_exit");
        _exit(40 + n % 10);
    }
    CALL(small, n + 1);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}
int vforks(const char *program) {
    pid_t child = vfork();
    if (child < 0) abort();
    if (child == 0) {
        execl(program, program, static_cast<char *>(nullptr));
        _exit(77);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}
int runs(int n, void (*end)(int)) {
    end(n);
    return sink;
}

} // namespace torture
