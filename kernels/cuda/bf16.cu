// bf16.cu: rounds a state to bf16 for an export.
//
// Shapes   values u32[count], bits of f32; out u16[count]
// Launch   a thread a value, thread blocks of any size.
// Exact    integers only: nearest, ties to even, infinity beyond the largest; a NaN keeps sign and
//          upper payload and is quiet. Equal to widen.rs bit for bit.
#include "common.cuh"

struct Rounding {
    const u32 *values;
    u16 *out;
    u64 count;
};
static_assert(sizeof(Rounding) == 24, "as in launch.rs");

KERNEL to_bf16(const Rounding r) {
    EACH_THREAD(t) {
        u64 at = (u64)blockIdx.x * blockDim.x + t;
        if (at < r.count) {
            u32 bits = r.values[at];
            bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
            r.out[at] = nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        }
    }
}
