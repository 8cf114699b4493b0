// libtorture_plugin.so: probed functions that come and go with dlopen and dlclose.
#include <stdexcept>

#include "spin.hpp"

#define PROBED [[gnu::noipa, gnu::visibility("default")]]

namespace plugin {

struct Error {
    int code;
};

PROBED int work(int us) {
    spin(us);
    return us + 7;
}

PROBED int fails(int n) {
    if (n % 2) throw Error{n};
    throw std::runtime_error("even");
}

// Calls back into the program: frames of two files alternate.
PROBED int calls_back(int n, int (*back)(int)) { return back(n) * 2; }

} // namespace plugin
