// Sweeps of rPIE through patterns that do not overlap: the CPU's are edgexnas.ptycho.sweeps.HostSweeps.
//
// Patterns of one launch share no pixel of the object, so that a sweep is launches in the order of the
// patterns that do overlap, three for each step: rows of probe · object are transformed; columns are
// transformed, compared with the pattern, corrected and transformed back; rows are transformed back and
// added to the object. A block has WIDTH rows or columns of all modes, in shared memory. Compile without
// contraction into fused multiply-adds (-fmad=false).
//
// SIDE, MODES and WIDTH are given. An item is four numbers: the row and column of a window's first pixel
// on the canvas, which of the 16 shifted probes it has, and which pattern it is.

#ifndef THREADS
#define THREADS 256
#endif
#define AREA (SIDE * SIDE)
#define LINES (MODES * WIDTH)
// Longer by one than a line, so that elements next to each other in columns lie in several banks.
#define PITCH (SIDE + 1)
#define GROUPS (SIDE / WIDTH)
#define LEAST_MODEL 1e-6f
#define LANES 16

static __device__ float2 product(float2 a, float2 b)
{
    return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x};
}

static __device__ float2 sum(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
static __device__ float2 difference(float2 a, float2 b) { return {a.x - b.x, a.y - b.y}; }
static __device__ float2 scaled(float2 a, float size) { return {a.x * size, a.y * size}; }
// Times -i.
static __device__ float2 turned_back(float2 a) { return {a.y, -a.x}; }

// The discrete Fourier transform of 2, 3, 4 or 5 numbers.
template <int R> static __device__ void butterfly(float2 (&v)[R])
{
    if constexpr (R == 2) {
        float2 first = v[0];
        v[0] = sum(first, v[1]);
        v[1] = difference(first, v[1]);
    } else if constexpr (R == 3) {
        float2 both = sum(v[1], v[2]), middle = difference(v[0], scaled(both, 0.5f));
        float2 side = turned_back(scaled(difference(v[1], v[2]), 0.86602540378443865f));
        v[0] = sum(v[0], both);
        v[1] = sum(middle, side);
        v[2] = difference(middle, side);
    } else if constexpr (R == 4) {
        float2 even = sum(v[0], v[2]), even_rest = difference(v[0], v[2]);
        float2 odd = sum(v[1], v[3]), odd_rest = turned_back(difference(v[1], v[3]));
        v[0] = sum(even, odd);
        v[1] = sum(even_rest, odd_rest);
        v[2] = difference(even, odd);
        v[3] = difference(even_rest, odd_rest);
    } else {
        const float c1 = 0.30901699437494742f, c2 = -0.80901699437494742f;
        const float s1 = 0.95105651629515357f, s2 = 0.58778525229247313f;
        float2 outer = sum(v[1], v[4]), inner = sum(v[2], v[3]);
        float2 outer_rest = difference(v[1], v[4]), inner_rest = difference(v[2], v[3]);
        float2 one = sum(v[0], sum(scaled(outer, c1), scaled(inner, c2)));
        float2 two = sum(v[0], sum(scaled(outer, c2), scaled(inner, c1)));
        float2 one_side = turned_back(sum(scaled(outer_rest, s1), scaled(inner_rest, s2)));
        float2 two_side = turned_back(difference(scaled(outer_rest, s2), scaled(inner_rest, s1)));
        v[0] = sum(v[0], sum(outer, inner));
        v[1] = sum(one, one_side);
        v[2] = sum(two, two_side);
        v[3] = difference(two, two_side);
        v[4] = difference(one, one_side);
    }
}

// Fourier transforms of all lines, unscaled, by Stockham's steps from one memory to the other; returns
// where they lie. turns: exp(-2πi k / SIDE).
template <int DONE> static __device__ float2 *transform(float2 *from, float2 *to, const float2 *turns)
{
    if constexpr (DONE == SIDE) {
        return from;
    } else {
        constexpr int left = SIDE / DONE;
        constexpr int R = left % 4 == 0 ? 4 : left % 2 == 0 ? 2 : left % 3 == 0 ? 3 : 5;
        static_assert(left % R == 0, "a side has factors 2, 3 and 5 alone");
        constexpr int parts = SIDE / R;
        for (int item = threadIdx.x; item < LINES * parts; item += THREADS) {
            int line = item / parts, part = item % parts, place = part % DONE;
            const float2 *source = from + line * PITCH + part;
            float2 v[R];
            v[0] = source[0];
#pragma unroll
            for (int j = 1; j < R; j++)
                v[j] = product(source[j * parts], turns[place * j * (left / R)]);
            butterfly<R>(v);
            float2 *target = to + line * PITCH + (part - place) * R + place;
#pragma unroll
            for (int j = 0; j < R; j++)
                target[j * DONE] = v[j];
        }
        __syncthreads();
        return transform<DONE * R>(to, from, turns);
    }
}

// A float16 that is no NaN, infinity or negative, exactly.
static __device__ float from_half(unsigned short bits)
{
    return __int_as_float((int)bits << 13) * 5.192296858534828e33f;
}

static __device__ void load_turns(const float2 *turns, float2 *table)
{
    for (int at = threadIdx.x; at < SIDE; at += THREADS)
        table[at] = turns[at];
}

// Rows of probe · object, transformed -> waves, (patterns, MODES, SIDE, SIDE).
extern "C" __global__ void __launch_bounds__(THREADS, 2) enter_rows(
    const int *items, const float2 *object, int width, const float2 *probes, const float2 *turns,
    float2 *waves)
{
    __shared__ float2 lines[2 * LINES * PITCH], table[SIDE];
    int slot = blockIdx.x / GROUPS, first = blockIdx.x % GROUPS * WIDTH;
    const int *item = items + 4 * slot;
    const float2 *window = object + (size_t)item[0] * width + item[1];
    const float2 *probe = probes + (size_t)item[2] * MODES * AREA;
    float2 *wave = waves + (size_t)slot * MODES * AREA;
    load_turns(turns, table);
    for (int at = threadIdx.x; at < LINES * SIDE; at += THREADS) {
        int line = at / SIDE, column = at % SIDE, row = first + line % WIDTH;
        float2 light = probe[(line / WIDTH) * AREA + row * SIDE + column];
        lines[line * PITCH + column] = product(light, window[(size_t)row * width + column]);
    }
    __syncthreads();
    const float2 *found = transform<1>(lines, lines + LINES * PITCH, table);
    for (int at = threadIdx.x; at < LINES * SIDE; at += THREADS) {
        int line = at / SIDE, column = at % SIDE, row = first + line % WIDTH;
        wave[(line / WIDTH) * AREA + row * SIDE + column] = found[line * PITCH + column];
    }
}

// Columns: the far field compared with the pattern, and if `correct`, given its amplitude and
// transformed back. A transform back is one forth with real and imaginary parts exchanged, before and
// after; `waves` keep them exchanged until `leave_rows`.
//
// roots: (all patterns, SIDE, SIDE) float16. masked: (SIDE, SIDE), not 0 where a pixel is unusable.
// sums: (all patterns, GROUPS, 2), of a block's usable pixels: the model's light, and (√I - √model)².
extern "C" __global__ void __launch_bounds__(THREADS, 2) compare_columns(
    const int *items, const unsigned short *roots, const unsigned char *masked, const float2 *turns,
    int correct, float2 *waves, double *sums)
{
    __shared__ float2 lines[2 * LINES * PITCH], table[SIDE];
    __shared__ double parts[2][THREADS];
    int slot = blockIdx.x / GROUPS, group = blockIdx.x % GROUPS, first = group * WIDTH, me = threadIdx.x;
    int number = items[4 * slot + 3];
    const unsigned short *root = roots + (size_t)number * AREA;
    float2 *wave = waves + (size_t)slot * MODES * AREA;
    load_turns(turns, table);
    for (int at = me; at < LINES * SIDE; at += THREADS) {
        int column = at % WIDTH, row = at / WIDTH % SIDE, mode = at / (WIDTH * SIDE);
        lines[(mode * WIDTH + column) * PITCH + row] = wave[mode * AREA + row * SIDE + first + column];
    }
    __syncthreads();
    float2 *found = transform<1>(lines, lines + LINES * PITCH, table);
    float2 *other = found == lines ? lines + LINES * PITCH : lines;
    double light = 0, misfit = 0;
    for (int at = me; at < WIDTH * SIDE; at += THREADS) {
        int column = at % WIDTH, row = at / WIDTH, pixel = row * SIDE + first + column;
        float intensity = 0;
#pragma unroll
        for (int mode = 0; mode < MODES; mode++) {
            float2 far = found[(mode * WIDTH + column) * PITCH + row];
            intensity += far.x * far.x + far.y * far.y;
        }
        intensity *= 1.0f / AREA;
        float model = sqrtf(intensity), change = 0;
        if (!masked[pixel]) {
            change = from_half(root[pixel]) - model;
            light += (double)intensity;
            misfit += (double)change * (double)change;
        }
        // (√I / √model - 1) · Ψ, and 0 where there is no model.
        float factor = change / (model > LEAST_MODEL ? model : LEAST_MODEL) * (1.0f / SIDE);
#pragma unroll
        for (int mode = 0; mode < MODES; mode++) {
            float2 *far = found + (mode * WIDTH + column) * PITCH + row;
            *far = {far->y * factor, far->x * factor};
        }
    }
    parts[0][me] = light;
    parts[1][me] = misfit;
    __syncthreads();
    // In a fixed order, so that the same scan has the same residual; in two steps, for threads wait.
    if (me < 2 * LANES) {
        double part = 0;
        for (int one = me % LANES; one < THREADS; one += LANES)
            part += parts[me / LANES][one];
        parts[me / LANES][me % LANES] = part;
    }
    if (correct) {
        found = transform<1>(found, other, table);
        for (int at = me; at < LINES * SIDE; at += THREADS) {
            int column = at % WIDTH, row = at / WIDTH % SIDE, mode = at / (WIDTH * SIDE);
            wave[mode * AREA + row * SIDE + first + column] =
                found[(mode * WIDTH + column) * PITCH + row];
        }
    } else {
        __syncthreads();
    }
    if (me < 2) {
        double total = 0;
        for (int lane = 0; lane < LANES; lane++)
            total += parts[me][lane];
        sums[2 * ((size_t)number * GROUPS + group) + me] = total;
    }
}

// Rows transformed back, weighed, and their sum over modes added to the object.
extern "C" __global__ void __launch_bounds__(THREADS, 2) leave_rows(
    const int *items, const float2 *waves, const float2 *steps, const float2 *turns, int width,
    float2 *object)
{
    __shared__ float2 lines[2 * LINES * PITCH], table[SIDE];
    int slot = blockIdx.x / GROUPS, first = blockIdx.x % GROUPS * WIDTH;
    const int *item = items + 4 * slot;
    const float2 *wave = waves + (size_t)slot * MODES * AREA;
    const float2 *step = steps + (size_t)item[2] * MODES * AREA;
    float2 *window = object + (size_t)item[0] * width + item[1];
    load_turns(turns, table);
    for (int at = threadIdx.x; at < LINES * SIDE; at += THREADS) {
        int line = at / SIDE, column = at % SIDE, row = first + line % WIDTH;
        lines[line * PITCH + column] = wave[(line / WIDTH) * AREA + row * SIDE + column];
    }
    __syncthreads();
    const float2 *found = transform<1>(lines, lines + LINES * PITCH, table);
    for (int at = threadIdx.x; at < WIDTH * SIDE; at += THREADS) {
        int column = at % SIDE, row = first + at / SIDE, pixel = row * SIDE + column;
        float2 change = {0, 0};
#pragma unroll
        for (int mode = 0; mode < MODES; mode++) {
            float2 back = found[(mode * WIDTH + at / SIDE) * PITCH + column];
            float2 straight = {back.y * (1.0f / SIDE), back.x * (1.0f / SIDE)};
            change = sum(change, product(straight, step[mode * AREA + pixel]));
        }
        float2 *place = window + (size_t)row * width + column;
        *place = sum(*place, change);
    }
}
