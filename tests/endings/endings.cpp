// A worker that does one operation and then ends in the way that its argument names.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <sys/resource.h>
#include <unistd.h>

static volatile long sink;

static void eat() {
    for (;;) {
        char* at = static_cast<char*>(std::malloc(1 << 20));
        if (at) std::memset(at, 1, 1 << 20);
    }
}

static void handler(int) { _exit(1); }

extern "C" __attribute__((noinline)) long work(long how) {
    for (long i = 0; i < 1000; ++i) sink = sink + i;
    if (how == 1) eat();
    if (how == 2) std::raise(SIGSEGV);
    return sink;
}

static void* nothing; // not a constant for the compiler

int main(int count, char** words) {
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    const std::string how = count > 1 ? words[1] : "";
    if (how == "handled") std::signal(SIGSEGV, handler);
    work(how == "eat" ? 1 : how == "inside" || how == "handled" ? 2 : 0);
    if (how == "success") return 0;
    if (how == "three") return 3;
    if (how == "segv") *static_cast<volatile int*>(nothing) = 1;
    if (how == "abort") std::abort();
    if (how == "terminate") throw std::runtime_error("nobody catches this");
    if (how == "eat-outside") eat();
    if (how == "wait") {
        std::puts("ready");
        std::fflush(stdout);
        for (;;) pause();
    }
    return 2;
}
