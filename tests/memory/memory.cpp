// A worker that takes and gives back known amounts of memory inside operations.
//
// Arguments: any number of HOW:KIB. Each runs one `grow(kib, how)`, the operation that the test looks at.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>
#include <sys/mman.h>
#include <unistd.h>

static volatile char sink;

static char* take(long kib) {
    void* at = mmap(nullptr, kib << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) { std::perror("mmap"); std::exit(9); }
    return static_cast<char*>(at);
}

static void touch(char* at, long kib) {
    for (long page = 0; page < kib << 10; page += 4096) at[page] = 1;
}

static void map_and_unmap(long kib) {
    char* at = take(kib);
    touch(at, kib);
    munmap(at, kib << 10);
}

extern "C" __attribute__((noinline)) long grow(long kib, int how) {
    char* at = nullptr;
    switch (how) {
    case 'm': map_and_unmap(kib); break;
    case 'k': at = take(kib); touch(at, kib); break; // keeps it
    case 'h': // the heap
        at = static_cast<char*>(std::malloc(kib << 10));
        touch(at, kib);
        std::free(at);
        break;
    case 'd': // gives it back without unmapping
        at = take(kib);
        touch(at, kib);
        madvise(at, kib << 10, MADV_DONTNEED);
        munmap(at, kib << 10);
        break;
    case 't': std::thread(map_and_unmap, kib).join(); break; // another thread of the process
    case 'n': // an operation inside takes a quarter, before
        grow(kib / 4, 'm');
        map_and_unmap(kib);
        break;
    case 's': // a saw: ten times the same, in pieces
        for (int i = 0; i < 10; ++i) map_and_unmap(kib);
        break;
    }
    sink = at ? 1 : 0;
    return kib;
}

int main(int count, char** words) {
    usleep(500000); // its file may be new to the tracer
    for (int i = 1; i < count; ++i) {
        const char* colon = std::strchr(words[i], ':');
        if (!colon) return 2;
        if (grow(std::atol(colon + 1), words[i][0]) < 0) return 3;
    }
}
