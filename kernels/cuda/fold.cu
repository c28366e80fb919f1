// fold.cu: applies what the miners of a round sent to one band, and steps it.
//
// Shapes   state u32[rows][columns], bits of f32, row-major, 16-aligned
//          index u8[miners][blocks][k * 3 / 2], code u8[miners][blocks][code_bytes]
//          level f32[miners][1 << code_bits]
//          found u64[3]: the lowest element with a non-finite delta, the lowest with a non-finite
//          value, the lowest block with a fault; the caller sets all to NONE
// Launch   one thread block per tensor block, of any size: the result does not depend on it.
// Order    miners in ledger order, a barrier between two. Indices are distinct within a block, so
//          no element has two writers in a phase: no atomics on floats. An index out of range or
//          sent twice is noticed (bits are set atomically, whose order does not matter) and its
//          block reported; which fault it is, the processor's check says. `state` is unspecified then.
// Exact    built with --fmad=false --ftz=false --prec-div=true; equal to reference.rs bit for bit.
#include "common.cuh"

#define BLOCK_LEN_MAX 4096
// Entries unpacked at a time, even.
#define TILE 2048
#define OUT_OF_RANGE 0xffff

struct Fold {
    u32 *state;
    const u8 *index;
    const u8 *code;
    const float *level;
    u64 *found;
    u64 columns;
    u32 blocks;
    // Blocks side by side.
    u32 across;
    u32 block_rows;
    u32 block_columns;
    u32 k;
    u32 code_bits;
    u32 miners;
    // What sums are divided by, unless by the number of those who sent the element.
    float divisor;
    u32 contributors;
    // The learning rate, negated.
    float rate;
    // 0: only look for what is not finite.
    u32 store;
    u32 unused;
};
static_assert(sizeof(Fold) == 96, "as in launch.rs");

struct Findings {
    u64 delta;
    u64 next;
};

DEVICE bool finite(u32 bits) { return (bits & 0x7f800000u) != 0x7f800000u; }

// The bits of an element after the step. An element nobody sent keeps its bits.
DEVICE u32 stepped(const Fold &f, float sum, u32 count, u32 before, u64 element, Findings &met) {
    if (count == 0) {
        return before;
    }
    float delta = sum / (f.contributors ? (float)count : f.divisor);
    float next = FMA(f.rate, delta, __uint_as_float(before));
    u32 after = __float_as_uint(next);
    if (!finite(__float_as_uint(delta)) && element < met.delta) {
        met.delta = element;
    }
    if (!finite(after) && element < met.next) {
        met.next = element;
    }
    // One pattern for all NaNs: which payload comes out differs between devices.
    return (after & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : after;
}

// The pair of entries at `entry` (even) of one miner: their indices and what their codes add.
DEVICE void unpack(const Fold &f, u64 block, u32 miner, u32 entry, u32 index[2], float level[2]) {
    u64 row = (u64)miner * f.blocks + block;
    const u8 *packed = f.index + row * (f.k / 2 * 3) + entry / 2 * 3;
    index[0] = packed[0] | (packed[1] & 15u) << 8;
    index[1] = packed[1] >> 4 | (u32)packed[2] << 4;
    const u8 *code = f.code + row * ((f.k * f.code_bits + 7) / 8);
    const float *levels = f.level + ((u64)miner << f.code_bits);
    for (u32 i = 0; i < 2; i++) {
        u32 bit = (entry + i) * f.code_bits;
        level[i] = levels[code[bit / 8] >> bit % 8 & ((1u << f.code_bits) - 1)];
    }
}

KERNEL fold(const Fold f) {
    alignas(16) __shared__ float sum[BLOCK_LEN_MAX];
    alignas(4) __shared__ u8 count[BLOCK_LEN_MAX];
    // Indices that the miner at hand has sent, and cleared words for the next miner.
    __shared__ u32 seen[2][BLOCK_LEN_MAX / 32];
    __shared__ u16 index[TILE];
    __shared__ float level[TILE];
    __shared__ u32 fault;

    const u32 block = blockIdx.x;
    const u32 block_len = f.block_rows * f.block_columns;
    const u64 origin = block / f.across * (f.block_rows * f.columns) + (u64)(block % f.across) * f.block_columns;
    const u32 entries = f.miners * f.k;

    EACH_THREAD(t) {
        for (u32 i = t; i < block_len; i += blockDim.x) {
            sum[i] = 0.0f;
            count[i] = 0;
        }
        for (u32 i = t; i < 2 * BLOCK_LEN_MAX / 32; i += blockDim.x) {
            seen[i / (BLOCK_LEN_MAX / 32)][i % (BLOCK_LEN_MAX / 32)] = 0;
        }
        if (t == 0) {
            fault = 0;
        }
        // The state comes while the sums are made. A line has 32 elements.
        u32 lines = (f.block_columns + 31) / 32;
        for (u32 i = t; i < f.block_rows * lines; i += blockDim.x) {
            PREFETCH(f.state + origin + i / lines * f.columns + i % lines * 32);
        }
    }
    __syncthreads();

    for (u32 tile = 0; tile < entries; tile += TILE) {
        const u32 end = min(entries, tile + TILE);
        EACH_THREAD(t) {
            for (u32 entry = tile + 2 * t; entry < end; entry += 2 * blockDim.x) {
                u32 at[2];
                float adds[2];
                unpack(f, block, entry / f.k, entry % f.k, at, adds);
                for (u32 i = 0; i < 2; i++) {
                    index[entry - tile + i] = at[i] < block_len ? at[i] : OUT_OF_RANGE;
                    level[entry - tile + i] = adds[i];
                }
            }
        }
        __syncthreads();
        for (u32 miner = tile / f.k; miner * f.k < end; miner++) {
            const u32 first = max(miner * f.k, tile);
            const u32 last = min((miner + 1) * f.k, end);
            EACH_THREAD(t) {
                for (u32 i = t; i < BLOCK_LEN_MAX / 32; i += blockDim.x) {
                    seen[(miner + 1) % 2][i] = 0;
                }
                for (u32 entry = first + t; entry < last; entry += blockDim.x) {
                    u32 at = index[entry - tile];
                    u32 bit = 1u << at % 32;
                    if (at == OUT_OF_RANGE || (atomicOr(&seen[miner % 2][at / 32], bit) & bit)) {
                        fault = 1;
                        continue;
                    }
                    sum[at] += level[entry - tile];
                    count[at] += 1;
                }
            }
            __syncthreads();
        }
    }

    const bool quads = f.block_columns % 4 == 0;
    // The block's row is walked in steps of one element or of four.
    const u32 step = quads ? 4 : 1;
    const u32 width = f.block_columns / step;
    EACH_THREAD(t) {
        Findings met = {NONE, NONE};
        u32 row = t / width;
        u32 column = t % width;
        NO_UNROLL
        for (u32 i = t; i * step < block_len; i += blockDim.x) {
            u64 at = origin + row * f.columns + column * step;
            if (quads) {
                uint4 value = *(const uint4 *)(f.state + at);
                float4 sums = *(const float4 *)(sum + 4 * i);
                u32 counts = *(const u32 *)(count + 4 * i);
                value.x = stepped(f, sums.x, counts & 255, value.x, at, met);
                value.y = stepped(f, sums.y, counts >> 8 & 255, value.y, at + 1, met);
                value.z = stepped(f, sums.z, counts >> 16 & 255, value.z, at + 2, met);
                value.w = stepped(f, sums.w, counts >> 24, value.w, at + 3, met);
                if (f.store) {
                    *(uint4 *)(f.state + at) = value;
                }
            } else {
                u32 value = stepped(f, sum[i], count[i], f.state[at], at, met);
                if (f.store) {
                    f.state[at] = value;
                }
            }
            row += blockDim.x / width;
            column += blockDim.x % width;
            if (column >= width) {
                column -= width;
                row += 1;
            }
        }
        if (met.delta != NONE) {
            atomicMin(&f.found[0], met.delta);
        }
        if (met.next != NONE) {
            atomicMin(&f.found[1], met.next);
        }
        if (t == 0 && fault) {
            atomicMin(&f.found[2], (u64)block);
        }
    }
}
