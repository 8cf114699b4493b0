// Work that takes a known time and has no result that depends on it.
#pragma once
#include <time.h>

static inline void spin(int us) {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    long until = t.tv_sec * 1000000000L + t.tv_nsec + us * 1000L;
    do clock_gettime(CLOCK_MONOTONIC, &t);
    while (t.tv_sec * 1000000000L + t.tv_nsec < until);
}
