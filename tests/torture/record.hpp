// What the torture worker writes about itself, so that cadscope's account can be held against it.
//
// One JSON line per event, each a single write(2) to an O_APPEND file: what was written survives any death.
//   begin  a probed call is about to be made      end   it returned, or an exception or a jump left it
//   fate   the thread or process is about to end: every call still open there ends that way
//
// Calls are recorded around the probed function, in `call` below, never inside it: its code, and with it its tail
// calls, frames and exits, is what the compiler makes of it alone. An exception is seen by a destructor, not by a
// catch, so that the runtime's own catch is the first one.
#pragma once

#include <cxxabi.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <type_traits>
#include <typeinfo>
#include <utility>

namespace record {

inline int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

struct Open {
    const char *id;
    int64_t seq, start;
};

// The calls open on this thread, outermost first. Those below `base` were made by the parent of a fork.
struct Thread {
    Open open[512];
    int depth, base;
    const char *flying[16]; // types of the exceptions in flight, innermost last
    int flights;
    bool ending; // a fate was recorded: nothing on this thread ends otherwise
};

inline thread_local Thread here;
inline int file = -1;
inline std::atomic<int64_t> next_seq;

inline void write_line(const char *line, int n) {
    if (file >= 0 && write(file, line, size_t(n)) != n) abort();
}

inline int tid() { return int(syscall(SYS_gettid)); }

inline void child_of_fork() {
    here.base = here.depth;
    here.ending = false;
}

inline void start() {
    const char *path = getenv("TORTURE_RECORD");
    if (path) file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (path && file < 0) {
        perror(path);
        exit(99);
    }
    next_seq = now(); // unique also after an exec
    pthread_atfork(nullptr, nullptr, child_of_fork);
}

inline void begin(const char *id, const long *n) {
    Thread &t = here;
    if (t.depth >= 512) abort();
    Open &o = t.open[t.depth];
    o.id = id;
    o.seq = next_seq.fetch_add(1);
    char line[400], parent[24] = "null", arg[24] = "null";
    if (t.depth > t.base) snprintf(parent, sizeof parent, "%lld", (long long)t.open[t.depth - 1].seq);
    if (n) snprintf(arg, sizeof arg, "%ld", *n);
    write_line(line, snprintf(line, sizeof line,
        "{\"e\":\"begin\",\"pid\":%d,\"tid\":%d,\"seq\":%lld,\"id\":\"%s\",\"parent\":%s,\"depth\":%d,\"n\":%s,\"at\":%lld}\n",
        getpid(), tid(), (long long)o.seq, id, parent, t.depth - t.base, arg, (long long)now()));
    t.depth++;
    o.start = now();
}

// Ends the innermost open call.
inline void end(int64_t at, const char *how, const char *type, const long *result) {
    Thread &t = here;
    Open &o = t.open[--t.depth];
    if (t.ending) return;
    if (t.depth < t.base) { // made by the parent of the fork: not ours to report
        t.base = t.depth;
        return;
    }
    char line[600], value[24] = "null", exception[260] = "null";
    if (result) snprintf(value, sizeof value, "%ld", *result);
    if (type) snprintf(exception, sizeof exception, "\"%s\"", type);
    write_line(line, snprintf(line, sizeof line,
        "{\"e\":\"end\",\"pid\":%d,\"tid\":%d,\"seq\":%lld,\"start\":%lld,\"end\":%lld,\"how\":\"%s\",\"type\":%s,\"result\":%s}\n",
        getpid(), tid(), (long long)o.seq, (long long)o.start, (long long)at, how, exception, value));
}

inline void write_fate(int pid, int tid, const char *how, int signal) {
    char line[200];
    write_line(line, snprintf(line, sizeof line,
        "{\"e\":\"fate\",\"pid\":%d,\"tid\":%d,\"how\":\"%s\",\"signal\":%d,\"at\":%lld}\n", pid, tid, how, signal,
        (long long)now()));
}

// The process ends now (tid 0 = all threads), by `how`.
inline void process_fate(const char *how, int signal = 0) {
    here.ending = true;
    write_fate(getpid(), 0, how, signal);
}

// This thread ends now.
inline void thread_fate() {
    here.ending = true;
    write_fate(getpid(), tid(), "thread_exit", 0);
}

// After a jump to a place where `mark` calls were open.
inline int mark() { return here.depth; }
inline void jumped(int mark) {
    int64_t at = now();
    while (here.depth > mark) end(at, "jump", nullptr, nullptr);
}

// An exception of this type is thrown now / was caught now.
inline void flies(const char *type) { here.flying[here.flights++ & 15] = type; }
inline void caught() { here.flights--; }

template <class T> const char *name_of() {
    static const char *name = abi::__cxa_demangle(typeid(T).name(), nullptr, nullptr, nullptr);
    return name;
}

// Throws, and says so.
#define RAISE(T, ...)                          \
    do {                                       \
        record::flies(record::name_of<T>());   \
        throw T(__VA_ARGS__);                  \
    } while (0)

struct Guard {
    int uncaught = std::uncaught_exceptions();
    const long *result = nullptr;
    int chain; // calls that end together: a probed function and those that it ends by jumping to
    explicit Guard(int chain) : chain(chain) {}
    ~Guard() {
        int64_t at = now();
        bool thrown = std::uncaught_exceptions() > uncaught;
        for (int i = 0; i < chain; i++)
            end(at, thrown ? "exception" : "return", thrown ? here.flying[(here.flights - 1) & 15] : nullptr, result);
    }
};

template <class T> constexpr bool is_value = std::is_integral_v<T> && sizeof(T) <= sizeof(long);

// Makes the call `id`, which goes on as the probed functions `tail...` (a tail call where the compiler makes one).
template <class R, class... P> [[gnu::noipa]] R call_chain(const char *const *ids, int chain, R (*f)(P...), P... p) {
    long n = 0;
    bool has_n = false;
    auto first = [&](auto v, auto...) {
        if constexpr (is_value<decltype(v)>) n = long(v), has_n = true;
    };
    if constexpr (sizeof...(P) > 0) first(p...);
    for (int i = 0; i < chain; i++) begin(ids[i], i == 0 && has_n ? &n : nullptr);
    long value = 0; // outlives the guard
    Guard guard(chain);
    if constexpr (std::is_void_v<R>) {
        f(p...);
    } else if constexpr (is_value<R>) {
        R r = f(p...);
        value = long(r);
        guard.result = &value;
        return r;
    } else {
        return f(p...);
    }
}

template <class R, class... P, class... A>
R call_as(const char *const *ids, int n, R (*f)(P...), A... a) {
    return call_chain<R, P...>(ids, n, f, P(a)...);
}

// Calls a probed function; TAIL one that ends as `next`.
#define CALL(name, ...) record::call_as(std::array{"torture." #name}.data(), 1, &torture::name __VA_OPT__(, ) __VA_ARGS__)
#define TAIL(name, next, ...) \
    record::call_as(std::array{"torture." #name, "torture." #next}.data(), 2, &torture::name __VA_OPT__(, ) __VA_ARGS__)

} // namespace record
