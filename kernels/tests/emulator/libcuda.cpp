// A CUDA driver and NVRTC without a card: the functions that cudarc calls for us, over the kernels as
// C++. Loaded in the place of NVIDIA's libraries, it lets the very program be tested that runs on a card.
//
// It is lazier than a card: what is queued on a stream happens when somebody waits for it, so memory
// that is used too early, or freed too early, shows. Memory is filled with poison, ends at a page that
// cannot be touched, and every copy must lie within it. Environment:
//
// GRADLEDGER_EMULATOR_ORDER    in which order the threads of a phase run (kernels.hpp)
// GRADLEDGER_EMULATOR_BYTES    how much memory the card has
// GRADLEDGER_EMULATOR_FAILS    with which launch of a kernel the card is lost, from 1
// GRADLEDGER_EMULATOR_DEVICES  how many cards there are
#include <functional>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <vector>

#include "kernels.hpp"

typedef int Result;
enum { SUCCESS = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 101, NOT_FOUND = 500, LOST = 719 };
typedef unsigned long long Address;
typedef std::vector<std::function<Result()>> Stream;

static std::mutex everything;
static std::map<Address, size_t> allocations;
static size_t allocated;
static long launches;
// A card that failed does nothing more.
static Result state = SUCCESS;

static long environment(const char *name, long otherwise) {
    const char *text = std::getenv(name);
    return text ? std::atol(text) : otherwise;
}

static size_t card_bytes() { return environment("GRADLEDGER_EMULATOR_BYTES", 1l << 30); }

static size_t pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

static bool ours(Address at, size_t bytes) {
    auto next = allocations.upper_bound(at);
    return next != allocations.begin() && at - std::prev(next)->first + bytes <= std::prev(next)->second;
}

#define LOCKED std::lock_guard<std::mutex> lock(everything)
#define API extern "C" Result

API cuInit(unsigned) {
    order = environment("GRADLEDGER_EMULATOR_ORDER", 0);
    return SUCCESS;
}
API cuDriverGetVersion(int *version) { return *version = 12080, SUCCESS; }
API cuDeviceGetCount(int *count) {
    return *count = environment("GRADLEDGER_EMULATOR_DEVICES", 1), SUCCESS;
}
API cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
API cuDeviceGetName(char *name, int length, int) {
    return std::snprintf(name, length, "emulated card"), SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, int) {
    // Compute capability 9.0; no memory pools.
    return *value = attribute == 75 ? 9 : 0, SUCCESS;
}
API cuDevicePrimaryCtxRetain(void **context, int) { return *context = &state, SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxSetCurrent(void *) { return SUCCESS; }
API cuCtxGetCurrent(void **context) { return *context = &state, SUCCESS; }
API cuGetErrorString(Result error, const char **text) {
    *text = error == NO_MEMORY ? "out of memory" : error == LOST ? "unspecified launch failure" : "emulated error";
    return SUCCESS;
}
API cuGetErrorName(Result error, const char **text) { return cuGetErrorString(error, text); }
API cuMemGetInfo_v2(size_t *free, size_t *total) {
    LOCKED;
    return *total = card_bytes(), *free = *total - allocated, state;
}

API cuMemAlloc_v2(Address *at, size_t bytes) {
    LOCKED;
    if (allocated + bytes > card_bytes()) {
        return NO_MEMORY;
    }
    size_t room = pages(bytes);
    auto start = (Address)mmap(nullptr, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect((void *)(start + room), 4096, PROT_NONE);
    std::memset((void *)start, 0xa5, room);
    // Up against the page that cannot be touched, aligned as a card does.
    *at = start + (room - bytes) / 256 * 256;
    allocations[*at] = bytes;
    allocated += bytes;
    return state;
}
API cuMemFree_v2(Address at) {
    LOCKED;
    auto found = allocations.find(at);
    if (found == allocations.end()) {
        return INVALID;
    }
    munmap((void *)(at / 4096 * 4096), pages(found->second) + 4096);
    allocated -= found->second;
    allocations.erase(found);
    return SUCCESS;
}
API cuMemHostRegister_v2(void *, size_t, unsigned) { return state; }
API cuMemHostUnregister(void *) { return SUCCESS; }

API cuStreamCreate(Stream **stream, unsigned) { return *stream = new Stream, state; }
API cuStreamSynchronize(Stream *stream) {
    LOCKED;
    for (auto &queued : *stream) {
        state = state ? state : queued();
    }
    stream->clear();
    return state;
}
API cuStreamDestroy_v2(Stream *stream) {
    Result result = cuStreamSynchronize(stream);
    delete stream;
    return result;
}

static Result copy(Stream *stream, Address to, Address from, size_t bytes, bool to_card, bool from_card) {
    LOCKED;
    stream->push_back([=] {
        if ((to_card && !ours(to, bytes)) || (from_card && !ours(from, bytes))) {
            return std::fputs("emulator: a copy outside memory\n", stderr), INVALID;
        }
        return std::memcpy((void *)to, (void *)from, bytes), SUCCESS;
    });
    return state;
}
API cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Stream *stream) {
    return copy(stream, to, (Address)from, bytes, true, false);
}
API cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Stream *stream) {
    return copy(stream, (Address)to, from, bytes, false, true);
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream *stream) {
    return copy(stream, to, from, bytes, true, true);
}

struct Kernel {
    const char *name;
    size_t bytes;
    std::function<void(const void *, unsigned, unsigned)> run;
};
#define ONE(kernel, Arguments)                                                                     \
    {#kernel, sizeof(Arguments), [](const void *a, unsigned blocks, unsigned threads) {            \
         run<Arguments>(kernel, a, blocks, threads);                                               \
     }}
static Kernel kernels[] = {ONE(fold, Fold), ONE(hash_pieces, Pieces), ONE(tree, Tree), ONE(to_bf16, Rounding)};

API cuModuleLoadData(void **module, const void *image) {
    return *module = kernels, std::memcmp(image, "emulated", 8) ? INVALID : SUCCESS;
}
API cuModuleUnload(void *) { return SUCCESS; }
API cuModuleGetFunction(Kernel **function, void *, const char *name) {
    for (Kernel &kernel : kernels) {
        if (std::strcmp(kernel.name, name) == 0) {
            return *function = &kernel, SUCCESS;
        }
    }
    return NOT_FOUND;
}
API cuLaunchKernel(Kernel *kernel, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned v, unsigned w,
                   unsigned shared, Stream *stream, void **arguments, void **) {
    LOCKED;
    if (blocks == 0 || threads == 0 || threads > 1024 || y * z * v * w != 1 || shared != 0) {
        return INVALID;
    }
    std::vector<char> argument((char *)arguments[0], (char *)arguments[0] + kernel->bytes);
    stream->push_back([=] {
        if (++launches == environment("GRADLEDGER_EMULATOR_FAILS", 0)) {
            return LOST;
        }
        return kernel->run(argument.data(), blocks, threads), SUCCESS;
    });
    return state;
}

// NVRTC, in the same library: what it compiles is here already.
API nvrtcVersion(int *major, int *minor) { return *major = 0, *minor = 0, SUCCESS; }
API nvrtcCreateProgram(void **program, const char *, const char *, int, const char *const *, const char *const *) {
    return *program = kernels, SUCCESS;
}
API nvrtcCompileProgram(void *, int, const char *const *) { return SUCCESS; }
API nvrtcGetCUBINSize(void *, size_t *bytes) { return *bytes = 8, SUCCESS; }
API nvrtcGetCUBIN(void *, char *cubin) { return std::memcpy(cubin, "emulated", 8), SUCCESS; }
API nvrtcGetProgramLogSize(void *, size_t *bytes) { return *bytes = 0, SUCCESS; }
API nvrtcGetProgramLog(void *, char *) { return SUCCESS; }
API nvrtcDestroyProgram(void **) { return SUCCESS; }
