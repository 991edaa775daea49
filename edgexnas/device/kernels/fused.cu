// The parts of which `engines/fused/program.py` composes a kernel that runs a whole Bragg network: one launch for a
// batch, every activation in shared memory, products by tensor cores.
//
// All layers are one kind of product. A feature map lies in shared memory with its channels last, and `multiply` takes
// the pixels of a map as rows, the output channels as columns, and runs along the taps of the kernel and the input
// channels. A dense layer is a kernel as large as its map; for networks without convolutions the rows are items.
// Operands travel in chunks of 16 bytes (8 float16 or 16 int8 channels of one pixel), two to a step of the tensor
// cores. `ldmatrix` takes an address from each lane, so the windows of a convolution need no copies of their own.
//
// A pixel's chunks are an odd number, so that eight pixels in a row lie in different banks.
//
// The fragments (which lane holds which element) are those of PTX ISA, "Matrix Fragments for mma.m16n8k16" and
// "mma.m16n8k32". On the CPU, where tests run this file, the instructions come from `cuda_on_cpu.h`.

#ifndef CUDA_ON_CPU

#define SHARED_MEMORY(name) extern __shared__ __align__(128) char name[]
#define INLINE __device__ __forceinline__

// OFFSET is part of the instruction: added to the address before, it would cost one of its own.
template <int OFFSET> INLINE void load_matrices(unsigned (&to)[4], const char *row)
{
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4 + %5];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address), "n"(OFFSET));
}

INLINE void load_transposed(unsigned (&to)[4], const char *row)
{
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address));
}

INLINE void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

INLINE void multiply_add(int (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two float16, the first in the low half.
INLINE unsigned as_halves(float low, float high)
{
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

INLINE void from_halves(unsigned pair, float &low, float &high)
{
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high) : "r"(pair));
}

// To nearest even, as QuantizeLinear of ONNX, and held within -128 to 127: two int8 in the lower bytes, and behind them
// the lower half of `rest`.
INLINE unsigned as_bytes(float first, float second, unsigned rest = 0)
{
    unsigned word;
    asm("{.reg .s32 f, s; cvt.rni.s32.f32 f, %1; cvt.rni.s32.f32 s, %2; cvt.pack.sat.s8.s32.b32 %0, s, f, %3;}"
        : "=r"(word) : "f"(first), "f"(second), "r"(rest));
    return word;
}

INLINE float reciprocal(float value)
{
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(value));
    return inverse;
}

INLINE float power_of_two(float value)
{
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}

// Stores if `there`: by a predicate, because a branch for each would keep sums from being worked on side by side.
template <int OFFSET> INLINE void store_if(bool there, char *to, unsigned short word)
{
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.shared.u16 [%1 + %3], %2;}"
                 ::"r"((int)there), "r"(address), "h"(word), "n"(OFFSET));
}

template <int OFFSET> INLINE void store_if(bool there, char *to, unsigned word)
{
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.shared.u32 [%1 + %3], %2;}"
                 ::"r"((int)there), "r"(address), "r"(word), "n"(OFFSET));
}

template <int OFFSET> INLINE void store_if(bool there, char *to, float2 pair)
{
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.shared.v2.f32 [%1 + %4], {%2, %3};}"
                 ::"r"((int)there), "r"(address), "f"(pair.x), "f"(pair.y), "n"(OFFSET));
}

INLINE void copy_chunk(char *to, const char *from)
{
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

INLINE void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// 0, of which the compiler does not know it. Addresses that depend on it are not computed ahead of the loop over items
// and kept in registers, which are better spent on sums.
INLINE int hidden_zero()
{
    int zero = 0;
    asm volatile("" : "+r"(zero));
    return zero;
}

template <int PENDING> INLINE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

#endif

#define PATCH 11
#define LOG2_E 1.44269504088896340736f
#define EVERY_LANE 0xffffffffu

struct Half { typedef float Sum; };
struct Int8 { typedef int Sum; };

enum Activation { NONE, RELU, LEAKY, SILU };

template <int KIND> INLINE float activated(float value, float slope)
{
    if (KIND == RELU)
        return fmaxf(value, 0.0f);
    if (KIND == LEAKY)
        // One instruction less, and the same for slopes of 1 or less.
        return slope >= 0.0f && slope <= 1.0f ? fmaxf(value, slope * value) : value > 0.0f ? value : slope * value;
    if (KIND == SILU)
        return value * reciprocal(1.0f + power_of_two(-value * LOG2_E));
    return value;
}

// ---- weights ----

// The copies of one layer's weights, which run while the layers before it are computed.
template <int FROM, int BYTES> INLINE void copy_weights(char *memory, const char *weights)
{
    for (int at = FROM + 16 * threadIdx.x; at < FROM + BYTES; at += 16 * THREADS)
        copy_chunk(memory + at, weights + at);
    end_of_copies();
}

// ---- input ----

// One pixel as column `column` of row `row` of the first layer's operand; 0 for what is beyond.
template <class I> INLINE float pixel_of(const float *patches, int group, int count, int row, int column)
{
    int item = group * ITEMS, pixel = column;
    if (I::KERNEL) {
        // The windows of a convolution with one input channel: one row for each output pixel.
        const int kernel = I::KERNEL ? I::KERNEL : 1;
        int at_row = row / I::WIDTH + column / kernel - I::PADDING;
        int at_column = row % I::WIDTH + column % kernel - I::PADDING;
        if (at_row < 0 || at_row >= PATCH || at_column < 0 || at_column >= PATCH)
            return 0.0f;
        pixel = at_row * PATCH + at_column;
    } else if (I::IMAGES > 1) {
        // Each patch several times: every second time with rows and columns exchanged, and these mirrored.
        int image = row % I::IMAGES, down = column / PATCH, across = column % PATCH;
        item += row / I::IMAGES;
        if (image & 2)
            across = PATCH - 1 - across;
        if (image & 4)
            down = PATCH - 1 - down;
        pixel = image & 1 ? across * PATCH + down : down * PATCH + across;
    } else {
        item += row;
    }
    if (column >= I::COLUMNS || row >= I::ROWS || item >= count)
        return 0.0f;
    return patches[(long long)item * (PATCH * PATCH) + pixel];
}

template <class I> INLINE void load_input(const float *patches, int group, int count, float (&pixels)[I::PAIRS][2])
{
#pragma unroll
    for (int i = 0; i < I::PAIRS; i++) {
        int pair = i * THREADS + threadIdx.x;
        int row = pair / (I::PADDED / 2), column = pair % (I::PADDED / 2) * 2;
        pixels[i][0] = pixel_of<I>(patches, group, count, row, column);
        pixels[i][1] = pixel_of<I>(patches, group, count, row, column + 1);
    }
}

template <class I> INLINE void store_input(char *memory, const float (&pixels)[I::PAIRS][2])
{
#pragma unroll
    for (int i = 0; i < I::PAIRS; i++) {
        int pair = i * THREADS + threadIdx.x;
        int row = pair / (I::PADDED / 2), column = pair % (I::PADDED / 2) * 2;
        if (row >= I::ROWS)
            continue;
        char *to = memory + I::AT + row * I::STRIDE;
        if (I::IN_INT8) {
            *(unsigned short *)(to + column) = as_bytes(pixels[i][0] * I::inverse_scale(), pixels[i][1] * I::inverse_scale());
        } else {
            *(unsigned *)(to + 2 * column) = as_halves(pixels[i][0], pixels[i][1]);
        }
    }
}

// Centroids of the inner 5 x 5 pixels by squared intensity, one warp to an item; see `Centroid` of the host package.
template <class C> INLINE void find_centroids(char *memory, const float *patches, int group, int count, int slot)
{
    int lane = threadIdx.x % 32;
    for (int item = threadIdx.x / 32; item < ITEMS && group * ITEMS + item < count; item += WARPS) {
        int row = lane / 5 - 2, column = lane % 5 - 2;
        float value = 0.0f;
        if (lane < 25)
            value = patches[(long long)(group * ITEMS + item) * (PATCH * PATCH) + (row + 5) * PATCH + column + 5];
        float sum = value * value, rows = sum * row, columns = sum * column;
        for (int other = 16; other; other /= 2) {
            sum += __shfl_xor_sync(EVERY_LANE, sum, other);
            rows += __shfl_xor_sync(EVERY_LANE, rows, other);
            columns += __shfl_xor_sync(EVERY_LANE, columns, other);
        }
        if (lane == 0) {
            float *to = (float *)(memory + C::AT) + 2 * (slot * ITEMS + item);
            to[0] = rows / (sum + C::least());
            to[1] = columns / (sum + C::least());
        }
    }
}

// ---- products ----

// Item, row and column of a row of the product.
template <class L> INLINE void place_of(unsigned row, unsigned &item, unsigned &y, unsigned &x)
{
    item = L::ROWS > L::PIXELS ? row / L::PIXELS : 0;
    unsigned pixel = row - item * L::PIXELS;
    y = pixel / L::WIDTH, x = pixel % L::WIDTH;
}

// Where the window of output row `row` begins.
template <class L> INLINE const char *window_of(const char *memory, unsigned row)
{
    unsigned item, y, x;
    place_of<L>(row < L::ROWS ? row : 0, item, y, x);
    return memory + L::IN + item * L::IN_ITEM + (y * L::IN_PITCH + x) * L::IN_STRIDE;
}

// Distance of a chunk from the window's beginning. The one that makes their number even has weights of 0.
template <class L> __host__ __device__ constexpr int chunk_at(int chunk)
{
    if (chunk >= L::CHUNKS)
        return 0;
    int tap = chunk / L::CHUNKS_A_PIXEL;
    return (tap / L::KERNEL_WIDTH * L::IN_PITCH + tap % L::KERNEL_WIDTH) * L::IN_STRIDE
         + chunk % L::CHUNKS_A_PIXEL * 16;
}

// Store one row's pairs of values in the forms in which they are read.
template <class L, int TILE, int ACROSS>
INLINE void store_values(bool there, char *floats, char *halves, char *bytes, const float2 (&values)[ACROSS])
{
    if constexpr (TILE < ACROSS) {
        float low = values[TILE].x, high = values[TILE].y;
        if (L::FLOATS >= 0)
            store_if<32 * TILE>(there, floats, values[TILE]);
        if (L::HALVES >= 0)
            store_if<16 * TILE>(there, halves, as_halves(low, high));
        if (L::BYTES >= 0)
            store_if<8 * TILE>(there, bytes, (unsigned short)as_bytes(low * L::inverse_scale(), high * L::inverse_scale()));
        store_values<L, TILE + 1>(there, floats, halves, bytes, values);
    }
}

// What becomes of sums: scale, bias, activation, what is added, and where they go. DOWN times ACROSS tiles are worked
// on side by side, and stored once all of them are done.
template <class L, int DOWN, int ACROSS>
INLINE void store_tiles(
    char *memory, unsigned lane, unsigned row_tile, unsigned column_tile,
    const typename L::Type::Sum (&sums)[DOWN][ACROSS][4], int slot = 0)
{
    const unsigned first = column_tile * 8 + lane % 4 * 2;
    float2 bias[ACROSS], scale[ACROSS];
#pragma unroll
    for (int tile = 0; tile < ACROSS; tile++) {
        bias[tile] = *(const float2 *)(memory + L::BIAS + 4 * (first + 8 * tile));
        scale[tile] = {1.0f, 1.0f};
        if (L::SCALES >= 0)
            scale[tile] = *(const float2 *)(memory + L::SCALES + 4 * (first + 8 * tile));
    }
    float2 values[DOWN][2][ACROSS];
#pragma unroll
    for (int down = 0; down < DOWN; down++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned row = (row_tile + down) * 16 + lane / 4 + 8 * half, item, y, x;
            place_of<L>(row < L::ROWS ? row : 0, item, y, x);
            const char *from = memory + L::ADDED + L::ADDED_SIZE * first
                             + (item + (y + L::ADDED_BORDER) * L::ADDED_PITCH + x + L::ADDED_BORDER) * L::ADDED_STRIDE;
#pragma unroll
            for (int tile = 0; tile < ACROSS; tile++) {
                // Written out, because sources are compiled without contraction.
                float low = fmaf((float)sums[down][tile][2 * half], scale[tile].x, bias[tile].x);
                float high = fmaf((float)sums[down][tile][2 * half + 1], scale[tile].y, bias[tile].y);
                low = activated<L::ACTIVATION>(low, L::slope()), high = activated<L::ACTIVATION>(high, L::slope());
                if (L::ADDED >= 0) {
                    float low_added, high_added;
                    if (L::ADDED_SIZE == 2) {
                        from_halves(*(const unsigned *)(from + 16 * tile), low_added, high_added);
                    } else {
                        low_added = ((const signed char *)from)[8 * tile] * L::added_scale();
                        high_added = ((const signed char *)from)[8 * tile + 1] * L::added_scale();
                    }
                    low = fmaf(L::gain(), low, low_added), high = fmaf(L::gain(), high, high_added);
                    low = activated<L::THEN>(low, L::slope()), high = activated<L::THEN>(high, L::slope());
                }
                values[down][half][tile] = {low, high};
            }
        }
#pragma unroll
    for (int down = 0; down < DOWN; down++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned row = (row_tile + down) * 16 + lane / 4 + 8 * half, item, y, x;
            place_of<L>(row, item, y, x);
            unsigned place = (y + L::BORDER) * L::PITCH + x + L::BORDER;
            store_values<L, 0>(
                row < L::ROWS, memory + L::FLOATS + row * L::FLOATS_STRIDE + 4 * first,
                memory + L::HALVES + slot * L::HALVES_SLOT + item * L::HALVES_ITEM + place * L::HALVES_STRIDE + 2 * first,
                memory + L::BYTES + slot * L::BYTES_SLOT + item * L::BYTES_ITEM + place * L::BYTES_STRIDE + first,
                values[down][half]);
        }
}

// Steps from STEP to END of a product.
template <class L, int STEP, int END> INLINE void add_products(
    typename L::Type::Sum (&sums)[L::CHAINS][L::DOWN][L::TILES][4], const char *const (&windows)[L::DOWN], const uint2 *weights,
    bool second)
{
    if constexpr (STEP < END) {
        unsigned a[L::DOWN][4];
#pragma unroll
        for (int down = 0; down < L::DOWN; down++) {
            if constexpr (L::CHUNKS_A_PIXEL % 2 == 0)
                load_matrices<chunk_at<L>(2 * STEP)>(a[down], windows[down]);
            else
                load_matrices<0>(a[down], windows[down] + (second ? chunk_at<L>(2 * STEP + 1) : chunk_at<L>(2 * STEP)));
        }
#pragma unroll
        for (int tile = 0; tile < L::TILES; tile++) {
            uint2 b = weights[(tile * L::STEPS + STEP) * 32];
#pragma unroll
            for (int down = 0; down < L::DOWN; down++)
                multiply_add(sums[STEP % L::CHAINS][down][tile], a[down], b.x, b.y);
        }
        add_products<L, STEP + 1, END>(sums, windows, weights, second);
    }
}

template <class L, int PART> struct Parts {
    static INLINE void add(int part, typename L::Type::Sum (&sums)[L::CHAINS][L::DOWN][L::TILES][4],
                           const char *const (&windows)[L::DOWN], const uint2 *weights, bool second)
    {
        // Each part has code of its own, in which the places of all chunks are constants.
        if (part == PART)
            add_products<L, PART * L::STEPS / L::PARTS, (PART + 1) * L::STEPS / L::PARTS>(sums, windows, weights, second);
        else
            Parts<L, PART - 1>::add(part, sums, windows, weights, second);
    }
};
template <class L> struct Parts<L, -1> {
    static INLINE void add(int, typename L::Type::Sum (&)[L::CHAINS][L::DOWN][L::TILES][4], const char *const (&)[L::DOWN],
                           const uint2 *, bool) {}
};

// One layer. A job is DOWN times 16 rows and TILES times 8 columns; where jobs are few, PARTS of them share the products
// of each. What it writes is of patch `slot` of those whose dense layers are computed together.
template <class L> INLINE void multiply(char *memory, int slot = 0)
{
    typedef typename L::Type::Sum Sum;
    const unsigned thread = threadIdx.x + hidden_zero(), warp = thread / 32, lane = thread % 32;
    for (unsigned job = warp; job < (L::ROW_TILES / L::DOWN) * (L::COLUMN_TILES / L::TILES) * L::PARTS; job += WARPS) {
        unsigned part = job % L::PARTS, tiles = job / L::PARTS % (L::COLUMN_TILES / L::TILES) * L::TILES;
        unsigned row_tile = job / L::PARTS / (L::COLUMN_TILES / L::TILES) * L::DOWN;
        // Two sums in turn where there is one tile: a product would wait for the one before it.
        Sum sums[L::CHAINS][L::DOWN][L::TILES][4] = {};
        const char *windows[L::DOWN];
#pragma unroll
        for (int down = 0; down < L::DOWN; down++)
            windows[down] = window_of<L>(memory, (row_tile + down) * 16 + lane % 16)
                          + (L::CHUNKS_A_PIXEL % 2 == 0 ? lane / 16 * 16 : 0);
        const uint2 *weights = (const uint2 *)(memory + L::WEIGHTS) + tiles * L::STEPS * 32 + lane;
        Parts<L, L::PARTS - 1>::add(part, sums, windows, weights, lane >= 16);
#pragma unroll
        for (int down = 0; down < L::DOWN; down++)
#pragma unroll
            for (int tile = 0; tile < L::TILES; tile++)
#pragma unroll
                for (int i = 0; L::CHAINS == 2 && i < 4; i++)
                    sums[0][down][tile][i] += sums[L::CHAINS - 1][down][tile][i];
        if (L::PARTS == 1) {
            store_tiles<L, L::DOWN, L::TILES>(memory, lane, row_tile, tiles, sums[0], slot);
            continue;
        }
#pragma unroll
        for (int down = 0; down < L::DOWN; down++)
#pragma unroll
            for (int tile = 0; tile < L::TILES; tile++) {
                Sum *to = (Sum *)(memory + L::SCRATCH)
                        + ((((row_tile + down) * L::COLUMN_TILES + tiles + tile) * L::PARTS + part) * 32 + lane) * 4;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    to[i] = sums[0][down][tile][i];
            }
    }
    if (L::PARTS == 1)
        return;
    __syncthreads();
    for (unsigned tile = warp; tile < L::ROW_TILES * L::COLUMN_TILES; tile += WARPS) {
        Sum sums[1][1][4] = {};
        const Sum *from = (const Sum *)(memory + L::SCRATCH) + (tile * L::PARTS * 32 + lane) * 4;
#pragma unroll
        for (int part = 0; part < L::PARTS; part++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[0][0][i] += from[part * 128 + i];
        store_tiles<L, 1, 1>(memory, lane, tile / L::COLUMN_TILES, tile % L::COLUMN_TILES, sums, slot);
    }
}

// ---- attention over the pixels of one map, and the product behind it ----

// A row's maximum lies with four neighbouring lanes.
INLINE float most_of_four(float value)
{
    value = fmaxf(value, __shfl_xor_sync(EVERY_LANE, value, 1));
    return fmaxf(value, __shfl_xor_sync(EVERY_LANE, value, 2));
}

// The operand of the product behind attention. In float16 the sums lie where that product wants them; in int8 its
// channels are taken in another order, in which the weights are packed too.
template <class A> INLINE void as_operand(unsigned (&operand)[A::STEPS][4], const float (&mixed)[A::INNER / 8][4], Half)
{
#pragma unroll
    for (int step = 0; step < A::STEPS; step++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            operand[step][i] = as_halves(mixed[2 * step + i / 2][i % 2 * 2], mixed[2 * step + i / 2][i % 2 * 2 + 1]);
}

template <class A> INLINE void as_operand(unsigned (&operand)[A::STEPS][4], const float (&mixed)[A::INNER / 8][4], Int8)
{
#pragma unroll
    for (int step = 0; step < A::STEPS; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float (&first)[4] = mixed[4 * step + i / 2 * 2], (&second)[4] = mixed[4 * step + i / 2 * 2 + 1];
            int at = i % 2 * 2;
            operand[step][i] = as_bytes(first[at], first[at + 1], as_bytes(second[at], second[at + 1]));
        }
}

// softmax(theta phi^T) g, with theta, phi and g side by side in one map, and then layer L on what comes out. A warp
// takes 16 pixels and keeps their scores in registers.
template <class A, class L> INLINE void attend(char *memory)
{
    const unsigned thread = threadIdx.x + hidden_zero(), lane = thread % 32;
    for (unsigned row_tile = thread / 32; row_tile < L::ROW_TILES; row_tile += WARPS) {
        // The rows that this lane loads: of theta by 16, of phi by 8, of g by 16.
        const char *map = memory + A::IN;
        unsigned row = row_tile * 16 + lane % 16;
        const char *theta = map + (row < A::PIXELS ? row : 0) * A::STRIDE + lane / 16 * 16;
        unsigned queries[A::INNER / 16][4];
#pragma unroll
        for (int step = 0; step < A::INNER / 16; step++)
            load_matrices<0>(queries[step], theta + 32 * step);
        float scores[A::KEY_TILES][4] = {};
#pragma unroll
        for (int tile = 0; tile < A::KEY_TILES; tile++) {
            unsigned key = tile * 8 + lane % 8;
            const char *phi = map + (key < A::PIXELS ? key : 0) * A::STRIDE + 2 * A::INNER + lane / 8 * 16;
#pragma unroll
            for (int two = 0; two < A::INNER / 32; two++) {
                unsigned keys[4];
                load_matrices<0>(keys, phi + 64 * two);
                multiply_add(scores[tile], queries[2 * two], keys[0], keys[1]);
                multiply_add(scores[tile], queries[2 * two + 1], keys[2], keys[3]);
            }
        }
        float most[2] = {-3.0e38f, -3.0e38f};
#pragma unroll
        for (int tile = 0; tile < A::KEY_TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (tile * 8 + lane % 4 * 2 + i % 2 >= A::PIXELS)
                    scores[tile][i] = -3.0e38f;
                most[i / 2] = fmaxf(most[i / 2], scores[tile][i]);
            }
        most[0] = most_of_four(most[0]) * LOG2_E, most[1] = most_of_four(most[1]) * LOG2_E;
#pragma unroll
        for (int tile = 0; tile < A::KEY_TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                scores[tile][i] = power_of_two(fmaf(scores[tile][i], LOG2_E, -most[i / 2]));
        // The sums of weights are a product too, with a column of ones.
        float weight_sums[4] = {};
        const unsigned ones = as_halves(1.0f, 1.0f);
        float mixed[A::INNER / 8][4] = {};
#pragma unroll
        for (int step = 0; step < (A::KEY_TILES + 1) / 2; step++) {
            unsigned weights[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // An odd number of tiles leaves half of the last step empty.
                int tile = 2 * step + i / 2;
                weights[i] = tile < A::KEY_TILES ? as_halves(scores[tile % A::KEY_TILES][i % 2 * 2], scores[tile % A::KEY_TILES][i % 2 * 2 + 1]) : 0;
            }
            multiply_add(weight_sums, weights, ones, ones);
            unsigned key = step * 16 + lane % 16;
            const char *values_at = map + (key < A::PIXELS ? key : 0) * A::STRIDE + 4 * A::INNER + lane / 16 * 16;
#pragma unroll
            for (int two = 0; two < A::INNER / 16; two++) {
                unsigned values[4];
                load_transposed(values, values_at + 32 * two);
                multiply_add(mixed[2 * two], weights, values[0], values[1]);
                multiply_add(mixed[2 * two + 1], weights, values[2], values[3]);
            }
        }
        const float share[2] = {reciprocal(weight_sums[0]) * A::inverse_scale(), reciprocal(weight_sums[2]) * A::inverse_scale()};
#pragma unroll
        for (int tile = 0; tile < A::INNER / 8; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                mixed[tile][i] *= share[i / 2];
        unsigned operand[A::STEPS][4];
        as_operand<A>(operand, mixed, typename L::Type());
        const uint2 *weights = (const uint2 *)(memory + L::WEIGHTS) + lane;
#pragma unroll
        for (int tile = 0; tile < L::COLUMN_TILES; tile += L::TILES) {
            typename L::Type::Sum sums[1][L::TILES][4] = {};
#pragma unroll
            for (int step = 0; step < A::STEPS; step++)
#pragma unroll
                for (int each = 0; each < L::TILES; each++) {
                    uint2 b = weights[((tile + each) * A::STEPS + step) * 32];
                    multiply_add(sums[0][each], operand[step], b.x, b.y);
                }
            store_tiles<L, 1, L::TILES>(memory, lane, row_tile, tile, sums);
        }
    }
}

// ---- what has no products ----

// Zeros around a map, where the next layer's windows reach beyond it.
template <class B> INLINE void clear_border(char *memory)
{
    for (int i = threadIdx.x; i < B::PITCH * B::PITCH * B::STRIDE / 16; i += THREADS) {
        int pixel = i / (B::STRIDE / 16), row = pixel / B::PITCH, column = pixel % B::PITCH;
        if (row == 0 || column == 0 || row == B::PITCH - 1 || column == B::PITCH - 1)
            *(uint4 *)(memory + B::AT + 16 * i) = {0, 0, 0, 0};
    }
}

INLINE unsigned most_of_pairs(unsigned first, unsigned second, Half)
{
    float a, b, c, d;
    from_halves(first, a, b);
    from_halves(second, c, d);
    return as_halves(fmaxf(a, c), fmaxf(b, d));
}

INLINE unsigned most_of_pairs(unsigned first, unsigned second, Int8)
{
    unsigned word = 0;
#pragma unroll
    for (int shift = 0; shift < 32; shift += 8) {
        int a = (signed char)(first >> shift), b = (signed char)(second >> shift);
        word |= ((a > b ? a : b) & 255) << shift;
    }
    return word;
}

// The largest of 2 x 2 pixels; what is left of an odd width is left out.
template <class P> INLINE void pool(char *memory, int slot = 0)
{
    for (int i = threadIdx.x; i < P::WIDTH * P::WIDTH * P::WORDS; i += THREADS) {
        int word = i % P::WORDS, pixel = i / P::WORDS, row = pixel / P::WIDTH, column = pixel % P::WIDTH;
        const char *from = memory + P::IN + ((2 * row + P::IN_BORDER) * P::IN_PITCH + 2 * column + P::IN_BORDER) * P::IN_STRIDE + 4 * word;
        typename P::Type type;
        unsigned upper = most_of_pairs(*(const unsigned *)from, *(const unsigned *)(from + P::IN_STRIDE), type);
        from += P::IN_PITCH * P::IN_STRIDE;
        unsigned lower = most_of_pairs(*(const unsigned *)from, *(const unsigned *)(from + P::IN_STRIDE), type);
        *(unsigned *)(memory + P::OUT + slot * P::SLOT + ((row + P::BORDER) * P::PITCH + column + P::BORDER) * P::STRIDE + 4 * word)
            = most_of_pairs(upper, lower, type);
    }
}

INLINE float softplus(float value)
{
    return value > 20.0f ? value : log1pf(expf(value));
}

// The middle quantile and the spacings beside it, as `QuantileHead` of the host package, to the offsets. `begin` is
// the first of the block's groups whose results are here.
template <class Q> INLINE void write_quantiles(const char *memory, float *offsets, int begin, int count)
{
    for (int i = threadIdx.x; i < 2 * ITEMS * TOGETHER; i += THREADS) {
        int item = i / 2, coordinate = i % 2;
        int patch = (begin + item / ITEMS * gridDim.x) * ITEMS + item % ITEMS;
        if (patch >= count)
            continue;
        const float *raw = (const float *)(memory + Q::RAW + (Q::IMAGES > 1 ? i : item) * Q::STRIDE)
                         + (Q::IMAGES > 1 ? 0 : coordinate * Q::LEVELS);
        float *to = offsets + ((long long)patch * 2 + coordinate) * Q::LEVELS;
        float start = Q::CENTROIDS >= 0 ? ((const float *)(memory + Q::CENTROIDS))[i] : 0.0f;
        float value = raw[Q::MIDDLE];
        to[Q::MIDDLE] = value + start;
        for (int level = Q::MIDDLE + 1; level < Q::LEVELS; level++)
            to[level] = (value += softplus(raw[level])) + start;
        value = raw[Q::MIDDLE];
        for (int level = Q::MIDDLE - 1; level >= 0; level--)
            to[level] = (value -= softplus(raw[level])) + start;
    }
}

// As `write_quantiles`, averaged over the mirror images of a patch, which eight neighbouring lanes have. What those say
// that are mirrored along the coordinate has the other sign, and its quantiles in the other order.
template <class Q> INLINE void write_averages(const char *memory, float *offsets, int begin, int count)
{
    const int each = Q::IMAGES, lane = threadIdx.x % each, coordinate = lane % 2;
    const bool turned = lane & 4;
    for (int first = threadIdx.x / 32 * 32; first < ITEMS * each; first += THREADS) {
        int row = first + threadIdx.x % 32, item = row / each, patch = begin * ITEMS + item;
        bool there = item < ITEMS && patch < count;
        const float *raw = (const float *)(memory + Q::RAW + (there ? row : 0) * Q::STRIDE);
        float values[Q::LEVELS];
        float value = values[Q::MIDDLE] = raw[Q::MIDDLE];
#pragma unroll
        for (int level = Q::MIDDLE + 1; level < Q::LEVELS; level++)
            values[level] = value += softplus(raw[level]);
        value = raw[Q::MIDDLE];
#pragma unroll
        for (int level = Q::MIDDLE - 1; level >= 0; level--)
            values[level] = value -= softplus(raw[level]);
        float start = Q::CENTROIDS >= 0 && there ? ((const float *)(memory + Q::CENTROIDS))[2 * item + coordinate] : 0.0f;
#pragma unroll
        for (int level = 0; level < Q::LEVELS; level++) {
            float sum = turned ? -values[Q::LEVELS - 1 - level] : values[level];
            sum += __shfl_xor_sync(EVERY_LANE, sum, 2);
            sum += __shfl_xor_sync(EVERY_LANE, sum, 4);
            if (there && lane < 2)
                offsets[((long long)patch * 2 + coordinate) * Q::LEVELS + level] = 0.25f * sum + start;
        }
    }
}
