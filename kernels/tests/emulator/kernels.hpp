// The kernels' text as C++, run on a processor: block by block, phase by phase, the threads of a
// phase one after the other in an order of the caller's choice.
//
// To be compiled with -ffp-contract=off. What the text needs of CUDA stands here; `fmaf`, `/` and `+`
// are exact as IEEE 754 has them, as they are on a card.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

struct Dim {
    unsigned x;
};
static Dim blockIdx, blockDim;

// 0: threads ascending; else a stride through them that is coprime to their number, a large prime or
// -1 for descending.
static unsigned order;
// Whether a phase has no barrier after it yet.
static bool open_phase;

static unsigned nth(unsigned at) {
    unsigned long long n = blockDim.x;
    return order == 0 ? at : order == -1u ? n - 1 - at % n : at * (unsigned long long)order % n;
}

static bool begin_phase() {
    if (open_phase) {
        std::fputs("emulator: two phases without a barrier between them\n", stderr);
        std::abort();
    }
    return open_phase = true;
}

#define EACH_THREAD(t)                                                                             \
    for (bool phase_ = begin_phase(); phase_; phase_ = false)                                      \
        for (unsigned at_ = 0, t = nth(0); at_ < blockDim.x; ++at_, t = nth(at_))
#define __syncthreads() (void)(open_phase = false)
#define KERNEL static void
#define DEVICE static inline
#define PREFETCH(at) (void)(at)
#define UNROLL
#define NO_UNROLL
#define __shared__ static
#define __constant__

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

template <class T, class U> static auto min(T a, U b) { return b < a ? b : a; }
template <class T, class U> static auto max(T a, U b) { return a < b ? b : a; }
static float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
static float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
static unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return by % 32 == 0 ? low : low >> by % 32 | high << (32 - by % 32);
}
static unsigned __byte_perm(unsigned x, unsigned, unsigned) { return __builtin_bswap32(x); }
static unsigned atomicOr(unsigned *at, unsigned bits) {
    unsigned before = *at;
    *at |= bits;
    return before;
}
static void atomicMin(unsigned long long *at, unsigned long long value) {
    *at = value < *at ? value : *at;
}

#include "../../cuda/bf16.cu"
#include "../../cuda/fold.cu"
#include "../../cuda/sha256.cu"

// Runs a kernel over a grid of `blocks` blocks of `threads` threads, the blocks in order or, with
// another order of threads, from the last to the first.
template <class Arguments>
static void run(void (*kernel)(const Arguments), const void *arguments, unsigned blocks,
                unsigned threads) {
    blockDim.x = threads;
    for (unsigned i = 0; i < blocks; ++i) {
        blockIdx.x = order == 0 ? i : blocks - 1 - i;
        open_phase = false;
        kernel(*static_cast<const Arguments *>(arguments));
    }
}
