// Turns lines of its input into calls: `warm|blazing CALLS RATE THREADS` has each thread make so many calls, so many a
// second (0 = as fast as it goes), and is answered with how many were made and the sum of what they returned.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
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
