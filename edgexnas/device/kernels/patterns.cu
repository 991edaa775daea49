// From diffraction patterns to a network's input.
//
// The rules are those of edgexnas.ptycho: check_counts, bin_patterns and scale_patterns. Compile
// without contraction into fused multiply-adds (-fmad=false), and with
//   PIXEL   the type of a pixel of the patterns

// Given by tests without a GPU, where threads cost time.
#ifndef THREADS
#define THREADS 1024
#endif
#define SIDE 64
#define AREA (SIDE * SIDE)
#define NONE 0x7fffffff

typedef unsigned char u8;

// Pixels of some dtypes cannot be negative.
#pragma nv_diag_suppress 186

// Crop around the direct beam at (height / 2, width / 2), sum blocks of factor x factor pixels, and take
// the square root of counts / intensity_scale. One block a pattern.
//
// masked: (height, width), or null; such a pixel counts as 0 whatever it holds. most: the largest count
// that is not saturated. bad: of each pattern the first pixel, of those that are summed, that is negative,
// above *most or no number, counted row by row, or NONE.
extern "C" __global__ void __launch_bounds__(THREADS, 1) bin_and_scale(
    const PIXEL *patterns, const u8 *masked, const PIXEL *most, int height, int width, int factor,
    float intensity_scale, float *scaled, int *bad)
{
    __shared__ int first_bad;
    const PIXEL *pattern = patterns + (size_t)blockIdx.x * height * width;
    PIXEL limit = *most;
    int mine = NONE;
    if (threadIdx.x == 0)
        first_bad = NONE;
    __syncthreads();
    int top = height / 2 - SIDE * factor / 2, left = width / 2 - SIDE * factor / 2;
    for (int item = threadIdx.x; item < AREA; item += THREADS) {
        int row = top + item / SIDE * factor, col = left + item % SIDE * factor;
        float sum = 0;
        for (int down = 0; down < factor; down++)
            for (int across = 0; across < factor; across++) {
                int pixel = (row + down) * width + col + across;
                if (masked && masked[pixel])
                    continue;
                PIXEL count = pattern[pixel];
                // NaN fails both comparisons.
                if (!(count >= 0 && count <= limit) && pixel < mine)
                    mine = pixel;
                sum += (float)count;
            }
        scaled[(size_t)blockIdx.x * AREA + item] = sqrtf(sum / intensity_scale);
    }
    if (mine != NONE)
        atomicMin(&first_bad, mine);
    __syncthreads();
    if (threadIdx.x == 0)
        bad[blockIdx.x] = first_bad;
}
