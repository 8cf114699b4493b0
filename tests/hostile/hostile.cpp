// A worker that means ill, or behaves as if it did. hostile MODE [ARGUMENT…] does one thing, prints what came of it, and
// ends with 0 if all went as it would without anybody watching.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <unwind.h>

#include <atomic>
#include <stdexcept>

// What is probed. The pushes and pops are the compiler's: it keeps registers over the call.
extern "C" [[gnu::noipa, gnu::visibility("default")]] long hostile_call(long number, long (*inside)(long)) {
    if (inside == nullptr) return number + 1;
    return inside(number) + 1;
}

// The same, and what its argument points to is read.
extern "C" [[gnu::noipa, gnu::visibility("default")]] long hostile_look(const unsigned *value) {
    return value != nullptr;
}

namespace {

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

// Maps a file as a library's code is.
void *map_code(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return perror(path), exit(90), nullptr;
    void *at = mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    if (at == MAP_FAILED) return perror(path), exit(91), nullptr;
    close(file);
    return at;
}

[[noreturn]] long throws(long) { throw std::runtime_error("nothing of this is secret"); }

long calls(long count) {
    long sum = 0;
    for (long i = 0; i < count; i++) sum += hostile_call(i, nullptr);
    return sum;
}

// ---- it waits to be told ---------------------------------------------------------------------------------------

int told(long count, long megabytes, int code) {
    size_t bytes = size_t(megabytes) << 20;
    char *memory = bytes == 0 ? nullptr : static_cast<char *>(malloc(bytes));
    if (memory != nullptr) memset(memory, 1, bytes);
    printf("%d\n", getpid());
    fflush(stdout);
    char byte;
    if (read(0, &byte, 1) != 1) return 95;
    printf("%ld\n", calls(count));
    fflush(stdout);
    free(memory);
    return code;
}

// ---- the stack pointer lies ------------------------------------------------------------------------------------

// Calls the probed function on a stack of its own making.
long call_on(char *top, long number) {
    long result;
    asm volatile("mov %%rsp, %%r12\n\tmov %1, %%rsp\n\txor %%esi, %%esi\n\tcall hostile_call\n\tmov %%r12, %%rsp"
                 : "=a"(result)
                 : "r"(top), "D"(number)
                 : "r12", "rsi", "rdx", "rcx", "r8", "r9", "r10", "r11", "memory", "cc");
    return result;
}

sigjmp_buf out;
void get_out(int) { siglongjmp(out, 1); }

// Enters the probed function with a stack pointer that points nowhere.
void enter_with(unsigned long stack) {
    if (sigsetjmp(out, 1) != 0) return;
    // Kept below the red zone of nobody: the handler comes back by siglongjmp.
    asm volatile("mov %0, %%rsp\n\tmov $1, %%edi\n\tlea hostile_call(%%rip), %%rax\n\tjmp *%%rax" : : "r"(stack) : "memory");
}

int stack_lies() {
    static char other[3][1 << 16];
    long sum = 0;
    for (int round = 0; round < 50; round++)
        for (auto &stack : other) sum += call_on(stack + sizeof stack - 64 - 16 * (round % 7), round);
    // Inside a call, on a third stack, with the slots of both out of order.
    sum += hostile_call(1, [](long n) { return call_on(other[2] + (1 << 15), n) + call_on(other[0] + 4096, n); });
    static char alternate[1 << 16];
    stack_t stack = {alternate, 0, sizeof alternate};
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_handler = get_out;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
    volatile long lies = 0;
    for (unsigned long nowhere : {8ul, 0x1000ul, 0x7ffffffff000ul, 0x8000000000000000ul, 0xffffffffffffff00ul, ~7ul}) {
        enter_with(nowhere);
        lies = lies + 1;
    }
    printf("%ld %ld %ld\n", sum, long(lies), calls(10));
    return 0;
}

// ---- it unwinds by itself --------------------------------------------------------------------------------------

_Unwind_Reason_Code count_frame(_Unwind_Context *context, void *count) {
    if (_Unwind_GetIP(context) != 0) ++*static_cast<long *>(count);
    return _URC_NO_REASON;
}

long backtrace(long) {
    long frames = 0;
    _Unwind_Backtrace(count_frame, &frames);
    return frames;
}

using Unw = int (*)(void *);
long with_libunwind(long) { // by its own walk over .eh_frame, no function of the compiler's runtime
    void *library = dlopen("libunwind.so.8", RTLD_NOW);
    if (library == nullptr) return -1;
    auto context_of = reinterpret_cast<Unw>(dlsym(library, "_Ux86_64_getcontext"));
    auto init = reinterpret_cast<int (*)(void *, void *)>(dlsym(library, "_ULx86_64_init_local"));
    if (init == nullptr) init = reinterpret_cast<int (*)(void *, void *)>(dlsym(library, "_Ux86_64_init_local"));
    auto step = reinterpret_cast<Unw>(dlsym(library, "_Ux86_64_step"));
    if (step == nullptr) step = reinterpret_cast<Unw>(dlsym(library, "_ULx86_64_step"));
    if (context_of == nullptr || init == nullptr || step == nullptr) return -2;
    alignas(16) static char context[8192], cursor[8192];
    if (context_of(context) != 0 || init(cursor, context) != 0) return -3;
    long frames = 0;
    while (step(cursor) > 0 && frames < 100) frames++;
    return frames;
}

ucontext_t home, guest;
long to_home(long n) {
    swapcontext(&guest, &home);
    return n;
}
void as_guest() {
    for (;;) hostile_call(7, to_home);
}

int unwinds_itself() {
    long frames = 0, walked = 0;
    for (int i = 0; i < 100; i++) frames += hostile_call(0, backtrace);
    walked = hostile_call(0, with_libunwind);
    static char stack[1 << 16];
    getcontext(&guest);
    guest.uc_stack.ss_sp = stack;
    guest.uc_stack.ss_size = sizeof stack;
    guest.uc_link = nullptr;
    makecontext(&guest, as_guest, 0);
    long turns = 0;
    for (int i = 0; i < 200; i++) {
        // Calls of two stacks end in another order than they began.
        turns += hostile_call(i, [](long n) {
            swapcontext(&home, &guest);
            return n;
        });
    }
    printf("%ld %d %ld %ld\n", frames, walked > 2, turns, calls(10));
    return 0;
}

// ---- a million exceptions a second -----------------------------------------------------------------------------

std::atomic<bool> enough;
void *throw_on(void *caught) {
    while (!enough) {
        try {
            hostile_call(1, throws);
        } catch (const std::exception &) {
            ++*static_cast<long *>(caught);
        }
    }
    return nullptr;
}

int exceptions(double seconds) {
    constexpr int THREADS = 4;
    pthread_t threads[THREADS];
    static long caught[THREADS][8]; // a cache line each
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], nullptr, throw_on, caught[i]);
    usleep(useconds_t(seconds * 1e6));
    enough = true;
    long sum = 0;
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], nullptr), sum += caught[i][0];
    fprintf(stderr, "%ld exceptions\n", sum);
    puts(sum > 0 ? "thrown" : "none");
    return 0;
}

// ---- forks ------------------------------------------------------------------------------------------------------

int forks(double seconds) {
    double end = now() + seconds;
    long children = 0, failed = 0;
    signal(SIGCHLD, SIG_IGN);
    while (now() < end) {
        pid_t child = fork();
        if (child == 0) {
            if (children % 3 == 0) hostile_call(1, nullptr);
            _exit(0);
        }
        child > 0 ? children++ : failed++;
        if (child < 0) usleep(1000);
    }
    while (wait(nullptr) > 0) {}
    fprintf(stderr, "%ld children, %ld refused\n", children, failed);
    printf("%d\n", children > 100);
    return 0;
}

// ---- seccomp ----------------------------------------------------------------------------------------------------

int strict() {
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) return perror("seccomp"), 92;
    long sum = calls(50);
    char text[] = "strict 0000\n";
    for (int at = 10; at > 6; at--, sum /= 10) text[at] = char('0' + sum % 10);
    if (write(1, text, sizeof text - 1) < 0) syscall(SYS_exit, 93);
    syscall(SYS_exit, 0); // exit_group is not allowed
    return 94;
}

// ---- a page that never comes ------------------------------------------------------------------------------------

int waits_forever() {
    int faults = int(syscall(SYS_userfaultfd, O_CLOEXEC));
    uffdio_api api = {UFFD_API, 0, 0};
    if (faults < 0 || ioctl(faults, UFFDIO_API, &api) != 0) return perror("userfaultfd"), 97;
    void *memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uffdio_register range = {};
    range.range.start = reinterpret_cast<unsigned long long>(memory);
    range.range.len = 4096;
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (memory == MAP_FAILED || ioctl(faults, UFFDIO_REGISTER, &range) != 0) return perror("register"), 97;
    puts("waits");
    fflush(stdout);
    hostile_look(static_cast<unsigned *>(memory)); // whoever reads it for the probe waits
    pause();
    return 98;
}

} // namespace

int main(int count, char **arguments) {
    const char *mode = count > 1 ? arguments[1] : "";
    auto is = [&](const char *name) { return strcmp(mode, name) == 0; };
    auto number = [&](int at, double other) { return count > at ? atof(arguments[at]) : other; };
    if (is("calls")) return printf("%ld\n", calls(long(number(2, 10)))), usleep(useconds_t(number(3, 0) * 1e6)), 0;
    if (is("told")) return told(long(number(2, 10)), long(number(3, 0)), int(number(4, 0)));
    if (is("stack_lies")) return stack_lies();
    if (is("unwinds_itself")) return unwinds_itself();
    if (is("exceptions")) return exceptions(number(2, 1));
    if (is("forks")) return forks(number(2, 1));
    if (is("strict")) return strict();
    if (is("waits_forever")) return waits_forever();
    if (is("maps")) { // maps each file, says so, and waits to be killed or for its input to end
        for (int i = 2; i < count; i++) map_code(arguments[i]);
        puts("mapped");
        fflush(stdout);
        char byte;
        while (read(0, &byte, 1) > 0) {}
        return 0;
    }
    fprintf(stderr, "no such mode: %s\n", mode);
    return 99;
}
