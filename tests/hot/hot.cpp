// Turns lines of its input into calls: `warm|blazing CALLS RATE THREADS` has each thread make so many calls, so many a
// second (0 = as fast as it goes), and is answered with how many were made and the sum of what they returned. `crowd COUNT 0 1`
// has so many processes, one after another, call 64 functions once each.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

// Begin and end on an instruction that the kernel emulates, as most functions do.
extern "C" {
[[gnu::noipa, gnu::visibility("default")]] long warm(long number) {
    asm volatile("nop" : "+r"(number));
    number += 1;
    asm volatile("nop" : "+r"(number));
    return number;
}
[[gnu::noipa, gnu::visibility("default")]] long blazing(long number) {
    asm volatile("nop" : "+r"(number));
    number += 2;
    asm volatile("nop" : "+r"(number));
    return number;
}
}

extern "C" [[gnu::noipa, gnu::visibility("default")]] long deep(long number) {
    asm volatile("nop" : "+r"(number));
    const long below = number > 1 ? deep(number - 1) : 0;
    asm volatile("nop" : "+r"(number));
    return below + 1;
}

template <int N> [[gnu::noipa, gnu::visibility("default")]] long crowd(long number) {
    asm volatile("nop" : "+r"(number));
    number += N;
    asm volatile("nop" : "+r"(number));
    return number;
}

template <int... N> static long all_of_the_crowd(std::integer_sequence<int, N...>) { return (crowd<N>(0) + ...); }

static long crowds(long processes) {
    long well = 0;
    for (long made = 0; made < processes; made++) {
        const pid_t child = fork();
        if (child == 0) _exit(all_of_the_crowd(std::make_integer_sequence<int, 64>()) == 64 * 63 / 2 ? 0 : 1);
        int status = 1;
        well += child > 0 && waitpid(child, &status, 0) == child && status == 0;
    }
    return well;
}

static long call(long (*function)(long), long calls, double rate) {
    using clock = std::chrono::steady_clock;
    const auto begin = clock::now();
    long sum = 0;
    for (long made = 0; made < calls; made++) {
        if (rate > 0 && made % 64 == 0)
            std::this_thread::sleep_until(begin + std::chrono::duration<double>(made / rate));
        sum += function(made);
    }
    return sum;
}

int main() {
    char name[16];
    long calls;
    double rate;
    int threads;
    while (scanf("%15s %ld %lf %d", name, &calls, &rate, &threads) == 4) {
        if (strcmp(name, "deep") == 0) {
            printf("%ld %ld\n", calls, deep(calls));
            fflush(stdout);
            continue;
        }
        if (strcmp(name, "crowd") == 0) {
            printf("%ld %ld\n", calls, crowds(calls));
            fflush(stdout);
            continue;
        }
        const auto function = strcmp(name, "warm") == 0 ? warm : blazing;
        std::vector<long> sums(threads);
        std::vector<std::thread> running;
        for (long &sum : sums)
            running.emplace_back([&sum, function, calls, rate] { sum = call(function, calls, rate); });
        for (std::thread &thread : running) thread.join();
        long all = 0;
        for (long sum : sums) all += sum;
        printf("%ld %ld\n", calls * threads, all);
        fflush(stdout);
    }
}
