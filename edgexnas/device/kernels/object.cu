// From patches to the object: weighted, spread over whole pixels, turned to fit, added to a canvas.
//
// The rules are those of edgexnas.ptycho: to_complex, spread_patch and ObjectCanvas. Compile without
// contraction into fused multiply-adds (-fmad=false).
//
// A canvas is its sums, (height, width, 2) real and imaginary, and its weights, (height, width), both in
// double precision. A place is four numbers: the whole row and column of a patch's first pixel on the
// canvas, and the parts of a pixel that it lies beyond them.

#define THREADS 256
// Given by tests without a GPU, where threads cost time.
#ifndef FIT_THREADS
#define FIT_THREADS 1024
#endif
#define SIDE 64
#define AREA (SIDE * SIDE)
#define SPREAD (SIDE + 1)
#define PIXELS (SPREAD * SPREAD)
#define ROUNDS ((PIXELS + FIT_THREADS - 1) / FIT_THREADS)
#define LANES 32

// What a patch adds to one of the 65 x 65 pixels that it is spread over: value along rows, then columns.
static __device__ float spread(
    const float *values, int row, int col, double row_move, double col_move)
{
    float row_part = (float)row_move, row_rest = (float)(1 - row_move);
    float col_part = (float)col_move, col_rest = (float)(1 - col_move);
    // Pixels next to each other along a row, each moved along the column by less than a pixel.
    float moved[2];
#pragma unroll
    for (int back = 0; back < 2; back++) {
        int c = col - back;
        float sum = 0;
        if (c >= 0 && c < SIDE) {
            if (row < SIDE)
                sum = values[row * SIDE + c] * row_rest;
            if (row > 0)
                sum += values[(row - 1) * SIDE + c] * row_part;
        }
        moved[back] = sum;
    }
    float total = col < SIDE ? moved[0] * col_rest : 0;
    return col > 0 ? total + moved[1] * col_part : total;
}

// (n, 2, 64, 64) amplitude and phase -> weighted real and imaginary parts.
extern "C" __global__ void __launch_bounds__(THREADS, 4) weigh_patches(
    const float *patches, const float *weight, int number, float *weighted)
{
    int item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= number * AREA)
        return;
    int pixel = item % AREA;
    size_t at = (size_t)(item / AREA) * 2 * AREA + pixel;
    float size = patches[at], angle = patches[at + AREA];
    weighted[at] = size * cosf(angle) * weight[pixel];
    weighted[at + AREA] = size * sinf(angle) * weight[pixel];
}

// Add weighted patches one after the other, each turned by the constant phase that fits it best to what
// is there, until one has less than `least` of its weight on covered pixels. One block, because each
// patch is compared with those before it, and so that sums do not depend on how patches were batched.
//
// report: how many were added; then of the last one compared the real and imaginary part of
// sum canvas * conj(patch), and the share of its weight on covered pixels. A patch may reach over the
// canvas as long as it is not added.
extern "C" __global__ void __launch_bounds__(FIT_THREADS, 1) fit_patches(
    const float *patches, const float *weight, const double *places, int number, float least,
    int height, int width, double *sums, double *weights, double *report)
{
    __shared__ double parts[4][FIT_THREADS];
    int me = threadIdx.x, one;
    double real_fit = 0, imaginary_fit = 0, overlap = 0;
    for (one = 0; one < number; one++) {
        const float *values = patches + (size_t)one * 2 * AREA;
        const double *place = places + 4 * one;
        int top = (int)place[0], left = (int)place[1];
        float real[ROUNDS], imaginary[ROUNDS], share[ROUNDS];
        double mine[4] = {0, 0, 0, 0};
#pragma unroll
        for (int turn = 0; turn < ROUNDS; turn++) {
            int pixel = turn * FIT_THREADS + me, r = pixel / SPREAD, c = pixel % SPREAD;
            real[turn] = imaginary[turn] = share[turn] = 0;
            if (pixel >= PIXELS)
                continue;
            real[turn] = spread(values, r, c, place[2], place[3]);
            imaginary[turn] = spread(values + AREA, r, c, place[2], place[3]);
            share[turn] = spread(weight, r, c, place[2], place[3]);
            mine[3] += (double)share[turn];
            int row = top + r, col = left + c;
            if (row < 0 || row >= height || col < 0 || col >= width)
                continue;
            size_t at = (size_t)row * width + col;
            double there_real = sums[2 * at], there_imaginary = sums[2 * at + 1];
            mine[0] += there_real * (double)real[turn] + there_imaginary * (double)imaginary[turn];
            mine[1] += there_imaginary * (double)real[turn] - there_real * (double)imaginary[turn];
            if (weights[at] > 0)
                mine[2] += (double)share[turn];
        }
        for (int kind = 0; kind < 4; kind++)
            parts[kind][me] = mine[kind];
        __syncthreads();
        if (me < 4 * LANES) {
            double sum = 0;
            for (int other = me % LANES; other < FIT_THREADS; other += LANES)
                sum += parts[me / LANES][other];
            parts[me / LANES][me % LANES] = sum;
        }
        __syncthreads();
        double total[4];
        for (int kind = 0; kind < 4; kind++) {
            total[kind] = 0;
            for (int lane = 0; lane < LANES; lane++)
                total[kind] += parts[kind][lane];
        }
        real_fit = total[0];
        imaginary_fit = total[1];
        overlap = total[2] / total[3];
        if (!(overlap >= (double)least))
            break;
        double length = sqrt(real_fit * real_fit + imaginary_fit * imaginary_fit);
        float cosine = length > 0 ? (float)(real_fit / length) : 1;
        float sine = length > 0 ? (float)(imaginary_fit / length) : 0;
#pragma unroll
        for (int turn = 0; turn < ROUNDS; turn++) {
            int pixel = turn * FIT_THREADS + me;
            if (pixel >= PIXELS)
                continue;
            size_t at = (size_t)(top + pixel / SPREAD) * width + left + pixel % SPREAD;
            sums[2 * at] += (double)(real[turn] * cosine - imaginary[turn] * sine);
            sums[2 * at + 1] += (double)(real[turn] * sine + imaginary[turn] * cosine);
            weights[at] += (double)share[turn];
        }
        // The next patch is compared with what all threads have added.
        __syncthreads();
    }
    if (me == 0) {
        report[0] = one;
        report[1] = real_fit;
        report[2] = imaginary_fit;
        report[3] = overlap;
    }
}

// Add one weighted patch that lies on the canvas as a whole, turned by a phase that is given. One thread
// a pixel.
extern "C" __global__ void __launch_bounds__(THREADS, 4) add_patch(
    const float *patch, const float *weight, const double *place, float cosine, float sine, int width,
    double *sums, double *weights)
{
    int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= PIXELS)
        return;
    int r = pixel / SPREAD, c = pixel % SPREAD;
    float real = spread(patch, r, c, place[2], place[3]);
    float imaginary = spread(patch + AREA, r, c, place[2], place[3]);
    size_t at = (size_t)((int)place[0] + r) * width + (int)place[1] + c;
    sums[2 * at] += (double)(real * cosine - imaginary * sine);
    sums[2 * at + 1] += (double)(real * sine + imaginary * cosine);
    weights[at] += (double)spread(weight, r, c, place[2], place[3]);
}

// Add what lies there of another canvas, whose first pixel is at (top, left), turned by a phase. One
// thread a pixel of the other.
extern "C" __global__ void __launch_bounds__(THREADS, 4) absorb_canvas(
    const double *other_sums, const double *other_weights, int other_height, int other_width, int top,
    int left, double cosine, double sine, int height, int width, double *sums, double *weights)
{
    int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= other_height * other_width)
        return;
    int row = top + pixel / other_width, col = left + pixel % other_width;
    if (row < 0 || row >= height || col < 0 || col >= width)
        return;
    size_t from = pixel, at = (size_t)row * width + col;
    double real = other_sums[2 * from], imaginary = other_sums[2 * from + 1];
    sums[2 * at] += real * cosine - imaginary * sine;
    sums[2 * at + 1] += real * sine + imaginary * cosine;
    weights[at] += other_weights[from];
}

// The object as it stands: weighted means, 0 where nothing was measured. values: (height, width, 2).
extern "C" __global__ void __launch_bounds__(THREADS, 4) finish_object(
    const double *sums, const double *weights, int pixels, float *values, float *coverage)
{
    int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= pixels)
        return;
    double weight = weights[pixel];
    bool covered = weight > 0;
    values[2 * (size_t)pixel] = covered ? (float)(sums[2 * (size_t)pixel] / weight) : 0;
    values[2 * (size_t)pixel + 1] = covered ? (float)(sums[2 * (size_t)pixel + 1] / weight) : 0;
    coverage[pixel] = (float)weight;
}
