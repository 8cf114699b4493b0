// The torture worker: `torture SCENARIO...` runs the scenarios and prints one line with a checksum for each.
//
//   torture --list      names of the scenarios, with what they are
//   torture --catalog   the catalogue of its probed functions, for `cadscope --catalog`
//
// TORTURE_RECORD=FILE   where it writes its own record of all probed calls (record.hpp)
// TORTURE_SETTLE_MS=N   how long it waits at most, at its start and after the first dlopen, until its files are probed
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "functions.hpp"
#include "record.hpp"
#include "spin.hpp"

extern char **environ;

namespace {

using namespace torture;

std::string program, folder;

// Whether a breakpoint lies in the first bytes of a function, on arm64 in its first instructions.
bool is_probed(const void *function) {
#ifdef __aarch64__
    const volatile unsigned *code = static_cast<const unsigned *>(function);
    const unsigned breakpoint = 0xd42000a0; // brk 5
#else
    const volatile unsigned char *code = static_cast<const unsigned char *>(function);
    const unsigned breakpoint = 0xcc;
#endif
    for (unsigned i = 0; i < 16; i++)
        if (code[i] == breakpoint) return true;
    return false;
}

// Waits until all of these functions are probed, and a little for those that are probed with them.
void settle(std::vector<const void *> functions) {
    const char *ms = getenv("TORTURE_SETTLE_MS");
    if (!ms) return;
    int64_t until = record::now() + atoll(ms) * 1000000;
    for (const void *function : functions)
        while (!is_probed(function) && record::now() < until) usleep(1000);
    if (atoll(ms) > 0) usleep(50 * 1000);
}

// ---- no exception, no jump -------------------------------------------------------------------------------------

[[gnu::noipa]] int call_variadic(int n, int x) { return torture::variadic(n, x, 2.0, 3, 4.0); }

long returns() {
    long sum = CALL(small, 4) + CALL(is_odd, 3) + CALL(is_odd, 4) + CALL(pointer, 2)[0];
    sum += long(CALL(real, 20) * 8) + CALL(pair, 7).b + CALL(large, 3).v[11] + long(CALL(wide, 5) >> 70);
    CALL(nothing, 1);
    sum += CALL(many_arguments, 1, 2, 3, 4, 5, 6, 7L, 8.0) + record::call_as(std::array{"torture.variadic"}.data(), 1, call_variadic, 4, 5);
    return sum + CALL(torture_c_name, 9);
}

long branches() {
    long sum = 0;
    for (int n = 0; n < 13; n++) sum = sum * 31 + CALL(many_returns, n);
    for (int n = 0; n < 13; n++) {
        if (n == 9) record::flies("std::runtime_error");
        try {
            sum = sum * 31 + CALL(jump_table, n);
        } catch (const std::runtime_error &) {
            record::caught();
            sum++;
        }
    }
    return sum;
}

long cold() {
    long sum = 0;
    for (int n : {1, 200, 2, 3, 300}) {
        sum = sum * 31 + CALL(cold_return, n);
        try {
            sum = sum * 31 + CALL(cold_throw, n);
        } catch (const Failure &f) {
            record::caught();
            sum += f.code;
        }
    }
    return sum;
}

int inner(int n) { return CALL(small, n) % 1000; }

long frames() {
    long sum = 0;
    for (int n : {3, 7, 9}) {
        sum = sum * 31 + CALL(around, n, inner);
        sum = sum * 31 + CALL(vla_frame, n, [](int n) { return CALL(alloca_frame, n, inner); });
        sum = sum * 31 + CALL(aligned_frame, n, [](int n) { return CALL(big_frame, n, inner); });
        sum = sum * 31 + CALL(alloca_frame, n, [](int n) { return CALL(aligned_frame, n, inner); });
        sum = sum * 31 + CALL(array_frame, n, [](int n) { return CALL(vla_frame, n, inner); });
    }
    return sum;
}

long recursion() { return CALL(recurse, 49) + CALL(recurse, 3) + CALL(fibonacci, 9); }
long recursion_deep() { return CALL(recurse, 199) + CALL(small, 2) + CALL(recurse, 5); }
long mutual_recursion() { return CALL(ping, 40) * 3 + CALL(pong, 7); }

// ---- tail calls ------------------------------------------------------------------------------------------------

long tail_calls() {
    long sum = CALL(tail_stub, 3000) + CALL(tail_after_work, 3000);
    for (int n = 0; n < 9; n++) sum = sum * 31 + CALL(tail_sometimes, n);
    return sum + CALL(around, 3, [](int n) { return CALL(tail_stub, n * 1000); });
}
long tail_probed() { return TAIL(tail_to_probed, work, 2000) + CALL(small, 1); }
long tail_mutual() {
    static const char *const chain[] = {"torture.tail_even", "torture.tail_odd", "torture.tail_even",
                                        "torture.tail_odd", "torture.tail_even"};
    return record::call_as(chain, 5, &torture::tail_even, 4) + CALL(tail_even, 0) + CALL(small, 1);
}
long tail_elsewhere() {
    return CALL(tail_register, 2000, [](int n) { spin(n); return n + 1; }) + CALL(tail_table, 1999 + 1) +
        CALL(tail_table, 1998) + CALL(tail_library, 2000u) + CALL(small, 1);
}

// ---- exceptions ------------------------------------------------------------------------------------------------

template <class F> long catching(F f) {
    try {
        return f();
    } catch (const SpecialFailure &e) {
        record::caught();
        return 100000 + e.code;
    } catch (const Failure &e) {
        record::caught();
        return 200000 + e.code;
    } catch (int n) {
        record::caught();
        return 300000 + n;
    } catch (const std::exception &e) {
        record::caught();
        return 400000 + long(strlen(e.what()));
    }
}

int throw_int(int n) { return CALL(throws_int, n); }
int throw_failure(int n) { return CALL(throws_failure, n); }
int throw_runtime_error(int n) { return CALL(throws_runtime_error, n); }

long throw_frames() {
    long sum = 0;
    for (int n : {0, 1, 2}) {
        for (Inside thrower : {throw_int, throw_failure, throw_runtime_error}) {
            static thread_local Inside inside;
            inside = thrower;
            sum = sum * 31 + catching([&] {
                return CALL(passes_deep, n, [](int n) {
                    return CALL(vla_frame, n + 1, [](int n) {
                        return CALL(aligned_frame, n + 1, [](int n) { return CALL(passes, n, inside); });
                    });
                });
            });
            sum = sum * 31 + CALL(small, n);
        }
    }
    return sum;
}
long throw_types() {
    long sum = 0;
    for (int n : {3, 4}) {
        sum = sum * 31 + catching([&] { return CALL(throws_int, n); });
        sum = sum * 31 + catching([&] { return CALL(throws_failure, n); });
        sum = sum * 31 + catching([&] { return CALL(throws_runtime_error, n); });
        sum = sum * 31 + catching([&] { return CALL(throws_in_library, n) ? 1 : 0; });
    }
    return sum;
}
long throw_tail() { // the frame that tail-calls is gone when the callee throws; the operation is not
    long sum = catching([] { return TAIL(tail_to_probed, work, 1500); });
    sum += catching([] { return CALL(passes, 1, [](int n) { return CALL(tail_register, n, throw_int); }); });
    return sum + CALL(small, 3);
}
long rethrow() {
    long sum = 0;
    for (int n : {1, 2}) {
        sum = sum * 31 + catching([&] {
            return CALL(passes, n, [](int n) {
                return CALL(rethrows, n, [](int n) { return CALL(passes, n, throw_failure); });
            });
        });
        sum = sum * 31 + CALL(small, n);
    }
    return sum;
}
long translate() {
    return catching([] {
        return CALL(passes, 5, [](int n) { return CALL(translates, n, throw_runtime_error); });
    }) + CALL(small, 2);
}
long rethrow_pointer() {
    std::exception_ptr kept;
    try {
        CALL(passes, 3, throw_failure);
    } catch (...) {
        record::caught();
        kept = std::current_exception();
    }
    long sum = CALL(small, 4);
    static thread_local const std::exception_ptr *again;
    again = &kept;
    sum += catching([] {
        return CALL(passes_deep, 4, [](int) -> int {
            record::flies("torture::Failure");
            std::rethrow_exception(*again);
        });
    });
    return sum + CALL(small, 5);
}
long catch_inside() {
    long sum = 0;
    for (Inside thrower : {throw_int, throw_failure, throw_runtime_error})
        sum = sum * 31 + CALL(catches, 3, thrower);
    return sum + CALL(around, 2, [](int n) {
        return CALL(catches, n, [](int n) { return CALL(passes_deep, n, throw_failure); });
    });
}
long catch_nested() { return CALL(catches_nested, 3) + CALL(catches_nested, 4); }
long destructors() {
    long sum = 0;
    for (int n : {0, 1, 2}) {
        sum = sum * 31 + catching([&] {
            return CALL(passes, n, [](int n) {
                return CALL(cleans_up, n, [](int n) {
                    return CALL(array_frame, n + 1, [](int n) { return CALL(cleans_up, n, throw_failure); });
                });
            });
        });
        sum = sum * 31 + CALL(small, n);
    }
    return sum;
}

// ---- jumps and signals -----------------------------------------------------------------------------------------

thread_local jmp_buf jump_target;
thread_local sigjmp_buf signal_target;

long long_jump() {
    volatile long sum = 0;
    for (volatile int n = 1; n < 4; n = int(n) + 1) {
        int mark = record::mark();
        int how = setjmp(jump_target);
        if (how == 0) {
            CALL(passes, n, [](int n) {
                return CALL(vla_frame, n + 1, [](int n) { return CALL(jumps, &jump_target, n); });
            });
            sum = -1; // never
        }
        record::jumped(mark);
        sum = sum * 31 + CALL(small, how);
    }
    return sum;
}
long long_jump_caught() { return CALL(catches_jump, 4) + CALL(around, 5, [](int n) { return CALL(catches_jump, n); }); }
[[gnu::noipa]] int deeper(int n) {
    volatile char room[5000];
    room[n] = 3;
    return CALL(small, n) + room[n];
}
long long_jump_then_deeper() { // the next call begins below the frames that were left
    int mark = record::mark();
    int how = setjmp(jump_target);
    if (how == 0) CALL(passes, 3, [](int n) { return CALL(jumps, &jump_target, n); });
    record::jumped(mark);
    int r = deeper(how);
    return r + CALL(small, 1);
}

void on_signal(int signal) {
    int saved = errno;
    CALL(handler_work, signal);
    CALL(around, 2, inner);
    errno = saved;
}
void on_signal_jump(int) {
    CALL(handler_work, 1);
    CALL(sigjumps, &signal_target, 6);
}
void install_handlers() {
    struct sigaction action = {};
    action.sa_handler = on_signal;
    sigaction(SIGUSR1, &action, nullptr);
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR2, &action, nullptr);
    action.sa_handler = on_signal_jump;
    sigaction(SIGURG, &action, nullptr);
}

long signals() {
    long sum = 0;
    for (int i = 0; i < 3; i++)
        sum += CALL(raises_signal, SIGUSR1) +
            CALL(passes, SIGUSR1, [](int signal) { return CALL(raises_signal, signal) + CALL(small, 2); });
    return sum;
}

long on_stack_at(char *stack, size_t bytes) {
    stack_t alternative = {}, before = {};
    alternative.ss_sp = stack;
    alternative.ss_size = bytes;
    if (sigaltstack(&alternative, &before) != 0) abort();
    long sum = CALL(raises_signal, SIGUSR2) +
        CALL(passes, SIGUSR2, [](int signal) { return CALL(raises_signal, signal) + CALL(small, 2); });
    int mark = record::mark();
    int how = sigsetjmp(signal_target, 1);
    if (how == 0) CALL(around, 1, [](int) { return CALL(raises_signal, SIGURG); });
    record::jumped(mark);
    sum += CALL(small, how);
    sigaltstack(&before, nullptr);
    return sum;
}
long signals_other_stack() {
    static thread_local char stack[64 * 1024];
    return on_stack_at(stack, sizeof stack);
}
// The signal stack lies above the thread's: a handler's frames look older than those that it interrupts.
long signals_stack_above() {
    constexpr size_t half = 512 * 1024;
    char *memory = static_cast<char *>(
        mmap(nullptr, 2 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED) abort();
    struct Task {
        char *above;
        long sum;
    } task = {memory + half, 0};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, memory, half);
    pthread_t thread;
    auto body = [](void *p) -> void * {
        Task *task = static_cast<Task *>(p);
        task->sum = on_stack_at(task->above, half);
        return nullptr;
    };
    if (pthread_create(&thread, &attributes, body, &task) != 0) abort();
    pthread_join(thread, nullptr);
    munmap(memory, 2 * half);
    return task.sum;
}
long signal_jump() {
    volatile long sum = 0;
    for (volatile int i = 0; i < 3; i = int(i) + 1) {
        int mark = record::mark();
        int how = sigsetjmp(signal_target, 1);
        if (how == 0) CALL(passes, SIGURG, [](int signal) { return CALL(raises_signal, signal); });
        record::jumped(mark);
        sum += CALL(small, how);
    }
    return sum;
}

// ---- processes, libraries --------------------------------------------------------------------------------------

long fork_child_exits() { return CALL(forks, 3, false) + CALL(around, 4, [](int n) { return CALL(forks, n, false); }); }
long fork_child_goes_on() {
    int r = CALL(around, 5, [](int n) { return CALL(forks, n, true); });
    bool child = r == 0; // it has returned out of what its parent had entered
    r += CALL(small, r);
    if (child) {
        CALL(passes, 6, inner);
        catching([] { return CALL(passes, 1, throw_int); });
        record::process_fate("process_exit");
        _exit(33);
    }
    return r;
}
long vfork_exec() {
    return CALL(vforks, "/bin/true") + CALL(vforks, "/bin/false") + CALL(vforks, "/nonexistent") + CALL(small, 1);
}
long spawn_self() {
    std::string scenario = "returns";
    char *arguments[] = {program.data(), scenario.data(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    long sum = 0;
    for (int i = 0; i < 2; i++) {
        pid_t child;
        if (posix_spawn(&child, program.c_str(), &actions, nullptr, arguments, environ) != 0) abort();
        int status = 0;
        waitpid(child, &status, 0);
        sum += status + CALL(small, i);
    }
    posix_spawn_file_actions_destroy(&actions);
    return sum;
}

long call_plugin(void *library) {
    auto work = reinterpret_cast<int (*)(int)>(dlsym(library, "_ZN6plugin4workEi"));
    auto fails = reinterpret_cast<int (*)(int)>(dlsym(library, "_ZN6plugin5failsEi"));
    auto back = reinterpret_cast<int (*)(int, Inside)>(dlsym(library, "_ZN6plugin10calls_backEiPFiiE"));
    if (!work || !fails || !back) abort();
    static const char *const work_id[] = {"plugin.work"}, *const fails_id[] = {"plugin.fails"},
                      *const back_id[] = {"plugin.calls_back"};
    long sum = record::call_as(work_id, 1, work, 1500);
    for (int n : {1, 2}) {
        record::flies(n % 2 ? "plugin::Error" : "std::runtime_error");
        try {
            record::call_as(fails_id, 1, fails, n);
        } catch (...) {
            record::caught();
            sum += n;
        }
    }
    sum += record::call_as(back_id, 1, back, 3, Inside(inner));
    return sum + catching([&] { return record::call_as(back_id, 1, back, 3, Inside(throw_failure)); });
}
long dlopen_dlclose_dlopen() {
    std::string path = folder + "/libtorture_plugin.so";
    long sum = 0;
    for (int i = 0; i < 3; i++) {
        void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            abort();
        }
        if (i == 0) settle({dlsym(library, "_ZN6plugin4workEi")});
        sum = sum * 31 + call_plugin(library) + CALL(small, i);
        if (dlclose(library) != 0) abort();
    }
    return sum;
}

// ---- threads ---------------------------------------------------------------------------------------------------

template <class F> long on_thread(F f) {
    long sum = 0;
    std::thread([&] { sum = f(); }).join();
    return sum;
}

long everything_in_a_thread() {
    long (*const all[])() = {returns, branches, cold, frames, recursion, mutual_recursion, tail_calls, throw_frames,
        throw_types, rethrow, translate, rethrow_pointer, catch_inside, catch_nested, destructors, long_jump,
        long_jump_caught, signals, signals_other_stack, signal_jump, fork_child_exits, vfork_exec};
    long sum = 0;
    for (auto scenario : all) sum = sum * 31 + scenario();
    return sum;
}
long threads() {
    std::vector<long> sums(8);
    std::vector<std::thread> running;
    for (long &sum : sums) running.emplace_back([&sum] { sum = everything_in_a_thread(); });
    long total = 0;
    for (auto &thread : running) thread.join();
    for (long sum : sums) total = total * 31 + sum;
    return total;
}
long thread_churn() { // thread ids and stacks are used again
    long sum = 0;
    for (int i = 0; i < 60; i++)
        sum += on_thread([i] { return CALL(passes, i, inner) + (i % 3 ? 0 : catching([i] { return CALL(throws_int, i); })); });
    return sum;
}
void *end_thread(void *) {
    CALL(small, 1);
    CALL(passes, 2, [](int n) {
        return CALL(around, n, [](int) -> int {
            record::thread_fate();
            pthread_exit(nullptr);
        });
    });
    return nullptr;
}
long thread_exits_inside() {
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        if (pthread_create(&thread, nullptr, end_thread, nullptr) != 0) abort();
        pthread_join(thread, nullptr);
        CALL(small, i);
    }
    return 5;
}
long thread_cancelled_inside() {
    pthread_t thread;
    auto body = [](void *) -> void * {
        CALL(passes, 2, [](int n) {
            return CALL(array_frame, n, [](int) {
                record::thread_fate();
                for (;;) pause();
                return 0;
            });
        });
        return nullptr;
    };
    if (pthread_create(&thread, nullptr, body, nullptr) != 0) abort();
    usleep(20000);
    pthread_cancel(thread);
    pthread_join(thread, nullptr);
    return CALL(small, 3);
}

// ---- time ------------------------------------------------------------------------------------------------------

long durations() {
    long sum = 0;
    for (int i = 0; i < 15; i++) {
        int us = 1100 + i * 600;
        sum = sum * 31 + CALL(work, us);
        sum = sum * 31 + CALL(tail_stub, us);
        sum = sum * 31 + CALL(passes, us, [](int us) { return CALL(work, us); });
        sum = sum * 31 + CALL(aligned_frame, 3, [](int n) { spin(1100 + n); return n; });
        sum = sum * 31 + catching([&] {
            return CALL(passes, us, [](int us) { spin(us); return CALL(throws_failure, us | 1); });
        });
    }
    return sum;
}
long nothing_probed() {
    spin(1000);
    return 1;
}

// ---- the end in the middle -------------------------------------------------------------------------------------

void say(const char *what) {
    printf("%s\n", what);
    fflush(stdout);
}
// Runs `end` inside three open calls.
long inside(void (*end)(int), int n) {
    static thread_local void (*last)(int);
    last = end;
    CALL(small, 1);
    return CALL(passes, n, [](int n) {
        return CALL(array_frame, n + 1, [](int n) { return CALL(runs, n, last); });
    });
}
[[noreturn]] void end_exit(int n) {
    record::process_fate("process_exit");
    exit(n);
}
[[noreturn]] void end_quick(int n) {
    record::process_fate("process_exit");
    _exit(n);
}
[[noreturn]] void end_abort(int) {
    record::process_fate("signal", SIGABRT);
    abort();
}
[[noreturn]] void end_terminate(int) {
    record::process_fate("signal", SIGABRT);
    std::terminate();
}
[[noreturn]] void end_uncaught(int n) {
    record::process_fate("signal", SIGABRT);
    RAISE(Failure, n);
}
void end_noexcept(int n) {
    record::process_fate("signal", SIGABRT);
    CALL(promises_nothing_thrown, n, [](int n) -> int { RAISE(Failure, n); });
}
void end_killed(int) {
    record::process_fate("signal", SIGKILL);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}
void end_segv(int) {
    record::process_fate("signal", SIGSEGV);
    static volatile uintptr_t nowhere = 4;
    *reinterpret_cast<volatile int *>(nowhere) = 1;
}
void end_exec(int) {
    record::process_fate("exec");
    execl(program.c_str(), program.c_str(), "returns", "throw_types", static_cast<char *>(nullptr));
    abort();
}

long exit_inside() { return say("about to exit"), inside(end_exit, 7); }
long quick_exit_inside() { return say("about to _exit"), inside(end_quick, 8); }
long abort_inside() { return say("about to abort"), inside(end_abort, 1); }
long terminate_inside() { return say("about to terminate"), inside(end_terminate, 1); }
long uncaught_inside() { return say("about to throw"), inside(end_uncaught, 1); }
long noexcept_inside() { return say("about to break a promise"), inside(end_noexcept, 1); }
long killed_inside() { return say("about to be killed"), inside(end_killed, 1); }
long segv_inside() { return say("about to crash"), inside(end_segv, 1); }
long exec_inside() { return say("about to exec"), inside(end_exec, 1); }
long exec_inside_thread() {
    return say("about to exec"), on_thread([] { return inside(end_exec, 1); });
}
// Four threads wait inside calls when another ends the process.
long exit_around_threads() {
    say("about to exit");
    static std::atomic<int> waiting;
    for (int i = 0; i < 4; i++)
        std::thread([i] {
            CALL(passes, i, [](int n) {
                return CALL(around, n, [](int) {
                    waiting++;
                    for (;;) pause();
                    return 0;
                });
            });
        }).detach();
    while (waiting < 4) usleep(1000);
    return on_thread([] { return inside(end_quick, 9); });
}

// ----------------------------------------------------------------------------------------------------------------

struct Scenario {
    const char *name;
    long (*run)();
    bool ends; // the process does not survive it
};
#define LIVES(name) {#name, name, false}
#define ENDS(name) {#name, name, true}
const Scenario scenarios[] = {
    LIVES(returns), LIVES(branches), LIVES(cold), LIVES(frames), LIVES(recursion), LIVES(recursion_deep),
    LIVES(mutual_recursion), LIVES(tail_calls), LIVES(tail_probed), LIVES(tail_mutual), LIVES(tail_elsewhere),
    LIVES(throw_frames), LIVES(throw_types), LIVES(throw_tail), LIVES(rethrow), LIVES(translate),
    LIVES(rethrow_pointer), LIVES(catch_inside), LIVES(catch_nested), LIVES(destructors), LIVES(long_jump),
    LIVES(long_jump_caught), LIVES(long_jump_then_deeper), LIVES(signals), LIVES(signals_other_stack),
    LIVES(signals_stack_above), LIVES(signal_jump), LIVES(fork_child_exits), LIVES(fork_child_goes_on),
    LIVES(vfork_exec), LIVES(spawn_self), LIVES(dlopen_dlclose_dlopen), LIVES(threads), LIVES(thread_churn),
    LIVES(thread_exits_inside), LIVES(thread_cancelled_inside), LIVES(durations), LIVES(nothing_probed),
    ENDS(exit_inside), ENDS(quick_exit_inside), ENDS(abort_inside), ENDS(terminate_inside), ENDS(uncaught_inside),
    ENDS(noexcept_inside), ENDS(killed_inside), ENDS(segv_inside), ENDS(exec_inside), ENDS(exec_inside_thread),
    ENDS(exit_around_threads),
};

// ---- the catalogue of what is probed ---------------------------------------------------------------------------

void print_probe(const char *id, void *address, const char *enter, const char *leave) {
    Dl_info info;
    if (dladdr(address, &info) == 0 || !info.dli_sname || info.dli_saddr != address) {
        fprintf(stderr, "%s is not exported\n", id);
        exit(98);
    }
    char *function = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
    printf("[[probe]]\nid = \"%s\"\nfunction = \"%s\"\nsymbols = [\"%s\"]\ntitle = \"%s\"\n", id,
        function ? function : info.dli_sname, info.dli_sname, id);
    free(function);
    printf("metric = \"torture_call_duration_seconds\"\nhelp = \"Duration of the torture worker's calls.\"\n"
           "labels = { status = \"status\" }\n[[probe.layout]]\n%s%s\n", enter, leave);
}

template <class R, class... P> void print_probe(const char *id, R (*f)(P...)) {
    bool has_n = false;
    auto first = [&](auto *p, auto *...) { has_n = std::is_same_v<decltype(p), int *>; };
    if constexpr (sizeof...(P) > 0) first(static_cast<std::remove_reference_t<P> *>(nullptr)...);
    has_n = has_n && !std::is_same_v<R, Large>; // its first argument is where the result goes
    const char *leave = std::is_same_v<R, int> ? "leave = { result = \"i32(ret)\" }\n"
        : std::is_same_v<R, bool>              ? "leave = { result = \"u8(ret)\" }\n"
                                               : "";
    print_probe(id, reinterpret_cast<void *>(f), has_n ? "enter = { n = \"i32(arg0)\" }\n" : "", leave);
}

// vforks' first argument is a text, and jumps' a pointer: only int arguments are read.
#define P(name) print_probe("torture." #name, &torture::name)
void print_catalog() {
    P(small), P(work), P(nothing), P(is_odd), P(pointer), P(real), P(pair), P(large), P(wide), P(many_arguments);
    print_probe("torture.variadic", reinterpret_cast<int (*)(int)>(&torture::variadic));
    P(many_returns), P(jump_table), P(cold_return), P(cold_throw), P(vla_frame), P(alloca_frame), P(aligned_frame);
    P(big_frame), P(array_frame), P(around), P(recurse), P(ping), P(pong), P(fibonacci), P(tail_stub);
    P(tail_after_work), P(tail_sometimes), P(tail_to_probed), P(tail_even), P(tail_odd), P(tail_register);
    P(tail_table), P(tail_library), P(throws_int), P(throws_failure), P(throws_runtime_error), P(throws_in_library);
    P(passes), P(passes_deep), P(rethrows), P(translates), P(catches), P(catches_nested), P(cleans_up);
    print_probe("torture.promises_nothing_thrown",
        reinterpret_cast<int (*)(int, Inside)>(&torture::promises_nothing_thrown));
    P(jumps), P(sigjumps), P(catches_jump), P(handler_work), P(raises_signal), P(forks), P(vforks), P(runs);
    P(torture_c_name);
    void *library = dlopen((folder + "/libtorture_plugin.so").c_str(), RTLD_NOW);
    if (!library) abort();
    const char *result = "leave = { result = \"i32(ret)\" }\n", *n = "enter = { n = \"i32(arg0)\" }\n";
    print_probe("plugin.work", dlsym(library, "_ZN6plugin4workEi"), n, result);
    print_probe("plugin.fails", dlsym(library, "_ZN6plugin5failsEi"), n, result);
    print_probe("plugin.calls_back", dlsym(library, "_ZN6plugin10calls_backEiPFiiE"), n, result);
}

} // namespace

int main(int count, char **arguments) {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0) return 97;
    program.assign(path, size_t(length));
    folder = program.substr(0, program.rfind('/'));
    rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);

    for (int i = 1; i < count; i++) {
        std::string wanted = arguments[i];
        if (wanted == "--list") {
            for (const Scenario &s : scenarios) printf("%s %s\n", s.name, s.ends ? "ends" : "lives");
            return 0;
        }
        if (wanted == "--catalog") {
            print_catalog();
            return 0;
        }
    }
    record::start();
    install_handlers();
    settle({reinterpret_cast<void *>(&torture::small), reinterpret_cast<void *>(&torture::throws_failure),
        reinterpret_cast<void *>(&abi::__cxa_begin_catch), dlsym(RTLD_DEFAULT, "_Unwind_RaiseException"),
        dlsym(RTLD_DEFAULT, "_Unwind_Resume"), reinterpret_cast<void *>(&longjmp)});
    for (int i = 1; i < count; i++) {
        bool found = false;
        for (const Scenario &s : scenarios) {
            if (strcmp(s.name, arguments[i]) != 0) continue;
            found = true;
            printf("%s %ld\n", s.name, s.run());
            fflush(stdout);
        }
        if (!found) {
            fprintf(stderr, "no scenario %s; see --list\n", arguments[i]);
            return 96;
        }
    }
    return 0;
}
