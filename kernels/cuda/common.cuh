// What the kernels share: words, and a way to write threads that a processor without a GPU can run.
//
// A kernel is a row of phases. Each phase is `EACH_THREAD(t) { ... }`, with `__syncthreads()` after
// it, and what a thread keeps from one phase to the next lies in shared memory. On a GPU a phase
// is run by every thread of the block once; in `tests/emulator` it is a loop over the threads, in any
// order. So no result can depend on how threads interleave, and the same text is tested on both.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC_RTC__
#define EACH_THREAD(t) for (u32 t = threadIdx.x, once_ = 1; once_; once_ = 0)
// Any size of a thread block up to this one will do.
#define KERNEL extern "C" __global__ void __launch_bounds__(1024)
#define DEVICE static __device__ __forceinline__
// A hint: the line will be read soon.
#define PREFETCH(at) asm volatile("prefetch.global.L2 [%0];" ::"l"(at))
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#endif

// The only fused multiply-add: one rounding. The check of the machine code builds it unfused too,
// and wants exactly the named ones to be the difference.
#ifdef UNFUSED
#define FMA(a, b, c) ((a) * (b) + (c))
#else
#define FMA(a, b, c) __fmaf_rn(a, b, c)
#endif

// No element, no block.
#define NONE 0xffffffffffffffffull
