// From diffraction patterns to a network's input, and from its output to the object.
//
// The rules are those of edgexnas.ptycho: bin_patterns, scale_patterns, to_complex and ObjectCanvas.
// Compile without contraction into fused multiply-adds (-fmad=false), and with
//   PIXEL   the type of a pixel of the patterns

#define THREADS 256
#define SIDE 64
#define AREA (SIDE * SIDE)
#define SPREAD (SIDE + 1)
#define POSITIONS 64
#define NOWHERE 0x3fffffff

typedef unsigned char u8;

// Crop around the direct beam at (height / 2, width / 2), sum blocks of factor x factor pixels, and take
// the square root of counts / intensity_scale. One thread a pixel of the input, (n, 64, 64).
extern "C" __global__ void __launch_bounds__(THREADS, 4) bin_and_scale(
    const PIXEL *patterns, int number, int height, int width, int factor, float intensity_scale,
    float *scaled)
{
    int item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= number * AREA)
        return;
    int pattern = item / AREA, row = item % AREA / SIDE, col = item % SIDE;
    int top = height / 2 - SIDE * factor / 2 + row * factor;
    int left = width / 2 - SIDE * factor / 2 + col * factor;
    const PIXEL *corner = patterns + ((size_t)pattern * height + top) * width + left;
    float sum = 0;
    for (int down = 0; down < factor; down++)
        for (int across = 0; across < factor; across++)
            sum += (float)corner[(size_t)down * width + across];
    scaled[item] = sqrtf(sum / intensity_scale);
}

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

// The network's (n, 2, 64, 64) amplitude and phase as weighted real and imaginary parts, in place.
extern "C" __global__ void __launch_bounds__(THREADS, 4) weigh_patches(
    float *patches, const float *weight, int number)
{
    int item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= number * AREA)
        return;
    int pixel = item % AREA;
    float *amplitude = patches + (size_t)(item / AREA) * 2 * AREA + pixel, *phase = amplitude + AREA;
    float size = *amplitude, angle = *phase;
    *amplitude = size * cosf(angle) * weight[pixel];
    *phase = size * sinf(angle) * weight[pixel];
}

// Add weighted patches to the canvas at their positions, one after the other, so that the sums do not
// depend on which block comes first. One thread a pixel of the canvas.
//
// positions: (n, 2) of each patch's first pixel, from the canvas's first pixel; one that is NaN or
// would reach over the canvas is left out. sums: (height, width, 2); weights: (height, width).
extern "C" __global__ void __launch_bounds__(THREADS, 4) stitch_patches(
    const float *patches, const float *weight, const double *positions, int number, int height,
    int width, double *sums, double *weights)
{
    // Positions are split into whole pixels and parts of one once a block, in integers: the Orin has
    // few units for double precision.
    __shared__ int top[POSITIONS], left[POSITIONS];
    __shared__ double row_parts[POSITIONS], col_parts[POSITIONS];
    int pixel = blockIdx.x * THREADS + threadIdx.x;
    bool inside = pixel < height * width, touched = false;
    int row = pixel / width, col = pixel % width;
    double real = 0, imaginary = 0, total = 0;
    for (int start = 0; start < number; start += POSITIONS) {
        __syncthreads();
        if (threadIdx.x < POSITIONS && start + threadIdx.x < number) {
            int me = threadIdx.x;
            double at_row = positions[2 * (start + me)], at_col = positions[2 * (start + me) + 1];
            bool fits = at_row >= 0 && at_row <= height - SPREAD
                && at_col >= 0 && at_col <= width - SPREAD;
            // NaN fails the comparisons too.
            top[me] = fits ? (int)at_row : NOWHERE;
            left[me] = fits ? (int)at_col : NOWHERE;
            row_parts[me] = fits ? at_row - (int)at_row : 0;
            col_parts[me] = fits ? at_col - (int)at_col : 0;
        }
        __syncthreads();
        for (int one = 0; inside && one < POSITIONS && start + one < number; one++) {
            int r = row - top[one], c = col - left[one];
            if (r < 0 || r >= SPREAD || c < 0 || c >= SPREAD)
                continue;
            if (!touched) {
                real = sums[2 * (size_t)pixel];
                imaginary = sums[2 * (size_t)pixel + 1];
                total = weights[pixel];
                touched = true;
            }
            const float *values = patches + (size_t)(start + one) * 2 * AREA;
            real += (double)spread(values, r, c, row_parts[one], col_parts[one]);
            imaginary += (double)spread(values + AREA, r, c, row_parts[one], col_parts[one]);
            total += (double)spread(weight, r, c, row_parts[one], col_parts[one]);
        }
    }
    if (touched) {
        sums[2 * (size_t)pixel] = real;
        sums[2 * (size_t)pixel + 1] = imaginary;
        weights[pixel] = total;
    }
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
