// sha256.cu: SHA-256 of the pieces of a state, and the RFC 6962 tree above their digests.
//
// Launch   hash_pieces: a thread a piece, thread blocks of any size. tree: a thread block an artifact,
//          of any size.
// Exact    integers only; equal to sha2's digests. Source: FIPS 180-4, section 6.2; RFC 6962, 2.1.
#include "common.cuh"

static __constant__ u32 ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

struct Digest {
    u32 word[8];
};

DEVICE u32 rotated(u32 x, u32 by) { return __funnelshift_r(x, x, by); }

// The other byte order.
DEVICE u32 swapped(u32 x) { return __byte_perm(x, 0, 0x0123); }

DEVICE Digest start() {
    return {{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

// One block of 64 bytes, as big-endian words; they are used up.
DEVICE void compress(Digest &digest, u32 w[16]) {
    u32 a = digest.word[0], b = digest.word[1], c = digest.word[2], d = digest.word[3];
    u32 e = digest.word[4], f = digest.word[5], g = digest.word[6], h = digest.word[7];
    UNROLL
    for (u32 i = 0; i < 64; i++) {
        if (i >= 16) {
            u32 x = w[(i + 1) % 16], y = w[(i + 14) % 16];
            u32 s0 = rotated(x, 7) ^ rotated(x, 18) ^ x >> 3;
            u32 s1 = rotated(y, 17) ^ rotated(y, 19) ^ y >> 10;
            w[i % 16] += s0 + w[(i + 9) % 16] + s1;
        }
        u32 s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
        u32 t1 = h + s1 + ((e & f) ^ (~e & g)) + ROUND[i] + w[i % 16];
        u32 s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
        u32 t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    u32 after[8] = {a, b, c, d, e, f, g, h};
    UNROLL
    for (u32 i = 0; i < 8; i++) {
        digest.word[i] += after[i];
    }
}

// A block of 64 bytes at `from`, which is at least 4-aligned.
DEVICE void load(const u8 *from, u32 w[16]) {
    if ((u64)from % 16 == 0) {
        UNROLL
        for (u32 i = 0; i < 4; i++) {
            uint4 four = ((const uint4 *)from)[i];
            w[4 * i] = swapped(four.x);
            w[4 * i + 1] = swapped(four.y);
            w[4 * i + 2] = swapped(four.z);
            w[4 * i + 3] = swapped(four.w);
        }
    } else {
        UNROLL
        for (u32 i = 0; i < 16; i++) {
            w[i] = swapped(((const u32 *)from)[i]);
        }
    }
}

// What stands at `at` of the message's last blocks, `end` bytes of it being left: bytes, the bit 1,
// zeros.
DEVICE u32 padded(const u8 *from, u32 end, u32 at) {
    u32 word = 0;
    for (u32 i = at; i < at + 4; i++) {
        word = word << 8 | (i < end ? from[i] : i == end ? 0x80u : 0u);
    }
    return word;
}

// The digest of `length` bytes at `from`, 4-aligned.
DEVICE Digest hashed(const u8 *from, u64 length) {
    Digest digest = start();
    u32 w[16];
    NO_UNROLL
    for (u64 block = 0; block < length / 64; block++) {
        load(from + 64 * block, w);
        compress(digest, w);
    }
    const u32 end = length % 64;
    from += length - end;
    // The length takes the last eight bytes of a block.
    NO_UNROLL
    for (u32 last = 0, at = 0; !last; at += 64) {
        last = at + 64 >= end + 9;
        UNROLL
        for (u32 i = 0; i < 16; i++) {
            w[i] = padded(from, end, at + 4 * i);
        }
        if (last) {
            w[14] = (u32)(length >> 29);
            w[15] = (u32)(length << 3);
        }
        compress(digest, w);
    }
    return digest;
}

struct Pieces {
    // 4-aligned, of `length` bytes, cut into pieces of `piece_bytes` (a multiple of 4), the last one
    // maybe shorter.
    const u8 *bytes;
    u64 length;
    u64 piece_bytes;
    // Of each piece its digest, as bytes.
    Digest *digests;
};
static_assert(sizeof(Pieces) == 32, "as in launch.rs");

KERNEL hash_pieces(const Pieces p) {
    EACH_THREAD(t) {
        u64 start = ((u64)blockIdx.x * blockDim.x + t) * p.piece_bytes;
        if (start < p.length) {
            Digest digest = hashed(p.bytes + start, min(p.piece_bytes, p.length - start));
            for (u32 i = 0; i < 8; i++) {
                p.digests[start / p.piece_bytes].word[i] = swapped(digest.word[i]);
            }
        }
    }
}

// SHA-256(00 || entry) of an entry of 32 bytes.
DEVICE Digest leaf(const Digest &entry) {
    Digest digest = start();
    u32 w[16] = {};
    w[0] = entry.word[0] >> 8;
    UNROLL
    for (u32 i = 1; i < 8; i++) {
        w[i] = entry.word[i - 1] << 24 | entry.word[i] >> 8;
    }
    w[8] = entry.word[7] << 24 | 0x800000;
    w[15] = 33 * 8;
    compress(digest, w);
    return digest;
}

// SHA-256(01 || left || right).
DEVICE Digest node(const Digest &left, const Digest &right) {
    Digest digest = start();
    u32 w[16];
    w[0] = 0x01000000 | left.word[0] >> 8;
    UNROLL
    for (u32 i = 1; i < 8; i++) {
        w[i] = left.word[i - 1] << 24 | left.word[i] >> 8;
        w[8 + i] = right.word[i - 1] << 24 | right.word[i] >> 8;
    }
    w[8] = left.word[7] << 24 | right.word[0] >> 8;
    compress(digest, w);
    w[0] = right.word[7] << 24 | 0x800000;
    UNROLL
    for (u32 i = 1; i < 15; i++) {
        w[i] = 0;
    }
    w[15] = 65 * 8;
    compress(digest, w);
    return digest;
}

struct Tree {
    // The pieces' digests of all artifacts, as bytes, one artifact after the other.
    const Digest *digests;
    // Where each artifact's begin, and the end of the last; each has at least one.
    const u64 *starts;
    // Room for as many digests each.
    Digest *nodes;
    Digest *above;
    // Of each artifact its root, as bytes.
    Digest *roots;
};
static_assert(sizeof(Tree) == 40, "as in launch.rs");

KERNEL tree(const Tree tree) {
    const u64 from = tree.starts[blockIdx.x];
    u64 count = tree.starts[blockIdx.x + 1] - from;
    Digest *nodes = tree.nodes + from;
    Digest *above = tree.above + from;
    EACH_THREAD(t) {
        for (u64 i = t; i < count; i += blockDim.x) {
            Digest entry;
            for (u32 word = 0; word < 8; word++) {
                entry.word[word] = swapped(tree.digests[from + i].word[word]);
            }
            nodes[i] = leaf(entry);
        }
    }
    __syncthreads();
    while (count > 1) {
        EACH_THREAD(t) {
            for (u64 i = t; i < count / 2; i += blockDim.x) {
                above[i] = node(nodes[2 * i], nodes[2 * i + 1]);
            }
            // Who has no neighbour goes up as it is: the split is at the largest power of two.
            if (t == 0 && count % 2 == 1) {
                above[count / 2] = nodes[count - 1];
            }
        }
        __syncthreads();
        Digest *below = nodes;
        nodes = above;
        above = below;
        count = count / 2 + count % 2;
    }
    EACH_THREAD(t) {
        if (t == 0) {
            for (u32 word = 0; word < 8; word++) {
                tree.roots[blockIdx.x].word[word] = swapped(nodes[0].word[word]);
            }
        }
    }
}
