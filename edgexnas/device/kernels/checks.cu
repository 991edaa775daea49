// Judge the peaks of a frame by what their patches and the network's output are like, and calibrate
// and widen the network's quantiles in place: what edgexnas.familiarity does on the CPU, in the same
// float32 operations in the same order. Compile without contraction into fused multiply-adds
// (-fmad=false).
//
// One warp a peak. What is summed in an order is summed by one lane; lanes differ by what they sum.

typedef unsigned char u8;

#define PATCH 11
#define CENTRE 5
#define AREA (PATCH * PATCH)
#define MIDDLE (AREA / 2)
#define LANES 32
#define JUDGE_THREADS 128
#define WARPS (JUDGE_THREADS / LANES)
#define APPLY_THREADS 256
#define MOST_PAIRS 18
#define QUANTITIES 11

#define UNFAMILIAR 16
#define TOGETHER 254
#define WHOLE_FRAME 255

#define HEADER_KEPT 1

// As in edgexnas.familiarity.quantities.
#define WINDOW_PX 1.3f
#define NARROW_PX 2.0f
#define WIDE_PX 5.5f
#define LINEAR 4.2f
#define SQUARE 19.0f
#define LEAST_RESPONSE 0.15f
#define NARROWEST_PX2 0.02f
#define NARROW_PX2 0.3f
#define LEAST_HALF_PX 0.001f
#define LARGEST_Z 6.0f
#define TINY 1e-6f

// The constants of a bundle, one behind the other; edges and factors follow.
#define WIDENING 0
#define LOWEST 6
#define HIGHEST (LOWEST + QUANTITIES)
#define MEANS (HIGHEST + QUANTITIES)
#define PER_SCALE (MEANS + QUANTITIES)
#define SLOPES (PER_SCALE + QUANTITIES)
#define FORM (SLOPES + QUANTITIES)
#define EDGES (FORM + QUANTITIES * QUANTITIES)

// For row and column: distance from the windowed centroid, its noise, windowed variance.
#define OWN 6
#define OWN_ITEMS (OWN + 1)

struct Patch {
    float pixels[AREA];
    float rows[PATCH], cols[PATCH];
    float columns[3][PATCH];
    float sums[14];
    float pairs[7][MOST_PAIRS];
    float z[QUANTITIES], terms[QUANTITIES];
};

static __device__ float larger(float a, float b) { return a > b ? a : b; }
static __device__ float smaller(float a, float b) { return a < b ? a : b; }
static __device__ float bounded(float value, float limit) { return smaller(larger(value, -limit), limit); }

static __device__ float gain(float variance, float width)
{
    float share = variance / (width * width);
    return 1.0f / larger(1.0f - share * (LINEAR + SQUARE * share), LEAST_RESPONSE);
}

static __device__ float weight_of(int pixel, float shift, float width)
{
    float ratio = ((float)(pixel - CENTRE) - shift) * (1.0f / width);
    float u = larger(1.0f - ratio * ratio, 0.0f);
    return u * u;
}

// The bits of a float are its logarithm to base 2, straight between the powers of 2.
static __device__ float octaves(float value, float least)
{
    return (float)__float_as_int(larger(value, least)) * 1.1920928955078125e-7f - 127.0f;
}

// Standard deviation of a pixel, from what of the odd part of a peak no shift explains.
static __device__ float pixel_noise(Patch &patch, float row, float col, int lane)
{
    int twice_row = 2 * CENTRE + (int)floorf(2.0f * bounded(row, 1.0f) + 0.5f);
    int twice_col = 2 * CENTRE + (int)floorf(2.0f * bounded(col, 1.0f) + 0.5f);
    int top = (twice_row - 4) / 2, left = (twice_col - 4) / 2;
    int rows = twice_row - 2 * top + 1, cols = twice_col - 2 * left + 1;
    // The middle row is its own image, of which one half is enough.
    int number = rows % 2 ? rows / 2 * cols + cols / 2 : rows / 2 * cols;
    if (lane < number) {
        int r = top + lane / cols, c = left + lane % cols;
        float one = patch.pixels[PATCH * r + c];
        float other = patch.pixels[PATCH * (twice_row - r) + twice_col - c];
        float odd = one - other, even = one + other;
        float slope = even * (2.0f + even);
        float down = (float)(2 * r - twice_row) * slope, across = (float)(2 * c - twice_col) * slope;
        patch.pairs[0][lane] = down * down;
        patch.pairs[1][lane] = across * across;
        patch.pairs[2][lane] = down * across;
        patch.pairs[3][lane] = odd * down;
        patch.pairs[4][lane] = odd * across;
        patch.pairs[5][lane] = odd * odd;
        patch.pairs[6][lane] = even > 0 ? 1.0f : 0.0f;
    }
    __syncwarp();
    if (lane < 7) {
        float sum = 0;
        for (int pair = 0; pair < number; pair++)
            sum += patch.pairs[lane][pair];
        patch.sums[lane] = sum;
    }
    __syncwarp();
    const float *s = patch.sums;
    float rr = s[0], cc = s[1], rc = s[2], qr = s[3], qc = s[4], qq = s[5];
    int pairs = (int)s[6];
    float determinant = rr * cc - rc * rc;
    if (determinant > TINY * rr * cc)
        qq -= (qr * qr * cc - 2.0f * qr * qc * rc + qc * qc * rr) / determinant;
    return sqrtf(larger(qq, 0.0f) / (float)(2 * (pairs > 3 ? pairs - 2 : 1)));
}

// Judge each peak by itself.
//
// scaled: (n, 121); heights: (n,); offsets: (n, 2, levels); own: (n, OWN_ITEMS), the last of each
// is the factor of its interval; alone: how many are unfamiliar.
extern "C" __global__ void __launch_bounds__(JUDGE_THREADS) judge_peaks(
    const float *scaled, const float *heights, const float *offsets, int levels, int middle,
    const float *constants, int counted, int scored, int snr_edges, int width_edges, float limit,
    const int *header, float *own, u8 *reasons, int *alone)
{
    __shared__ Patch patches[WARPS];
    int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    Patch &patch = patches[warp];
    int number = header[HEADER_KEPT];
    for (int peak = blockIdx.x * WARPS + warp; peak < number; peak += gridDim.x * WARPS) {
        float empty = 0;
        for (int pixel = lane; pixel < AREA; pixel += LANES) {
            float value = scaled[peak * AREA + pixel];
            patch.pixels[pixel] = value;
            empty += value == 0 ? 1.0f : 0.0f;
        }
        // Whole numbers, whose sum has no order.
        for (int other = LANES / 2; other; other /= 2)
            empty += __shfl_xor_sync(0xffffffffu, empty, other);
        __syncwarp();
        const float *p = patch.pixels;
        const float *of_row = offsets + peak * 2 * levels, *of_col = of_row + levels;
        float row = of_row[middle], col = of_col[middle];
        float half_row = larger((of_row[levels - 1] - of_row[0]) * 0.5f, LEAST_HALF_PX);
        float half_col = larger((of_col[levels - 1] - of_col[0]) * 0.5f, LEAST_HALF_PX);
        float beside_row = p[MIDDLE - PATCH] + p[MIDDLE + PATCH];
        float beside_col = p[MIDDLE - 1] + p[MIDDLE + 1];
        float row_px = smaller(larger(WINDOW_PX * (1.0f + beside_row), NARROW_PX), WIDE_PX);
        float col_px = smaller(larger(WINDOW_PX * (1.0f + beside_col), NARROW_PX), WIDE_PX);
        float x = bounded(row, 1.5f), y = bounded(col, 1.5f);
        if (lane < PATCH) {
            patch.rows[lane] = weight_of(lane, x, row_px);
            patch.cols[lane] = weight_of(lane, y, col_px);
        }
        __syncwarp();
        if (lane < PATCH) {
            float plain = 0, first = 0, second = 0;
            for (int r = 0; r < PATCH; r++) {
                float t = (float)(r - CENTRE) - x;
                float weighted = patch.rows[r] * p[PATCH * r + lane];
                plain += weighted;
                weighted *= t;
                first += weighted;
                second += weighted * t;
            }
            patch.columns[0][lane] = plain;
            patch.columns[1][lane] = first;
            patch.columns[2][lane] = second;
        }
        __syncwarp();
        if (lane < 14) {
            // 0 to 5: total, down, down², across, cross, across²; 6 to 9: squares of the windows, and
            // their second moments; 10 to 13: the four sides of the patch.
            float sum = 0;
            for (int i = 0; i < PATCH; i++) {
                float add;
                if (lane < 6) {
                    float t = (float)(i - CENTRE) - y, weight = patch.cols[i];
                    if (lane > 2)
                        weight *= t;
                    if (lane == 5)
                        weight *= t;
                    add = weight * patch.columns[lane < 3 ? lane : lane == 4][i];
                } else if (lane < 10) {
                    bool of_rows = lane < 8;
                    float t = (float)(i - CENTRE) - (of_rows ? x : y);
                    float weight = of_rows ? patch.rows[i] : patch.cols[i];
                    add = weight * weight;
                    if (lane % 2)
                        add = add * t * t;
                } else {
                    int place = lane == 10 ? i : lane == 11 ? AREA - 1 - i
                        : lane == 12 ? PATCH * (i + 1) : PATCH * (i + 1) - 1;
                    add = i < PATCH - 1 ? p[place] : 0.0f;
                }
                sum += add;
            }
            patch.sums[lane] = sum;
        }
        __syncwarp();
        const float *s = patch.sums;
        float per_total = 1.0f / larger(s[0], TINY);
        float down = s[1] * per_total, across = s[3] * per_total;
        float variance_row = larger(s[2] * per_total - down * down, NARROWEST_PX2);
        float variance_col = larger(s[5] * per_total - across * across, NARROWEST_PX2);
        float covariance = s[4] * per_total - down * across;
        float plain_row = s[6], first_row = s[7], plain_col = s[8], first_col = s[9];
        float rim = ((s[10] + s[11]) + (s[12] + s[13])) * 0.025f;
        float gain_row = gain(variance_row, row_px), gain_col = gain(variance_col, col_px);
        x = bounded(x + down * gain_row, 2.0f);
        y = bounded(y + across * gain_col, 2.0f);
        // Sums are written anew from here on.
        __syncwarp();
        float noise = pixel_noise(patch, x, y, lane);
        float spread = noise * per_total;
        float far_row = fabsf(row - x), far_col = fabsf(col - y);
        float variance = sqrtf(variance_row * variance_col);
        float far = larger(far_row, far_col), interval = sqrtf(half_row * half_col);
        float height = heights[peak];
        float found[QUANTITIES] = {
            2.3548f * sqrtf(variance),
            (variance_row - variance_col) / (variance_row + variance_col),
            covariance / variance,
            noise,
            empty * (float)(1.0 / AREA),
            rim,
            interval,
            far / (far + interval),
            (beside_row + beside_col) * 0.25f,
            height,
            noise * noise * height,
        };
        int reason = 0;
        for (int quantity = counted - 1; quantity >= 0; quantity--) {
            float value = found[quantity];
            if (!(constants[LOWEST + quantity] <= value && value <= constants[HIGHEST + quantity]))
                reason = quantity + 1;
        }
        if (scored && reason == 0) {
            found[3] = sqrtf(noise);
            found[5] = sqrtf(rim);
            found[6] = sqrtf(interval);
            found[9] = octaves(height, 1.0f);
            found[10] = octaves(found[10], 0.01f);
            if (lane == 0)
                for (int quantity = 0; quantity < counted; quantity++)
                    patch.z[quantity] = bounded(
                        (found[quantity] - constants[MEANS + quantity]) * constants[PER_SCALE + quantity],
                        LARGEST_Z);
            __syncwarp();
            if (lane < counted) {
                float slope = constants[SLOPES + lane];
                for (int other = 0; other < counted; other++)
                    slope += constants[FORM + other * counted + lane] * patch.z[other];
                patch.terms[lane] = patch.z[lane] * slope;
            }
            __syncwarp();
            float total = 0;
            for (int quantity = 0; quantity < counted; quantity++)
                total += patch.terms[quantity];
            if (!(total <= limit))
                reason = TOGETHER;
        }
        if (lane == 0) {
            float *mine = own + peak * OWN_ITEMS;
            mine[0] = far_row;
            mine[1] = spread * sqrtf(first_row * plain_col) * gain_row;
            mine[2] = variance_row;
            mine[3] = far_col;
            mine[4] = spread * sqrtf(plain_row * first_col) * gain_col;
            mine[5] = variance_col;
            const float *edges = constants + EDGES;
            float snr = 1.0f / larger(noise, TINY);
            int group = 0, wide = 0;
            for (int edge = 0; edge < snr_edges; edge++)
                group += snr >= edges[edge];
            edges += snr_edges;
            for (int edge = 0; edge < width_edges; edge++)
                wide += found[0] >= edges[edge];
            mine[OWN] = edges[width_edges + group * (width_edges + 1) + wide];
            reasons[peak] = (u8)reason;
            if (reason)
                atomicAdd(alone, 1);
        }
        // Before the next patch is written over this one.
        __syncwarp();
    }
}

// Look at the frame as a whole; calibrate and widen quantiles in place, and flag peaks.
//
// ticket: which block is the last, that makes the counters ready for the next frame.
extern "C" __global__ void __launch_bounds__(APPLY_THREADS) apply_checks(
    float *offsets, int levels, int middle, const float *constants, float share, int least_alone,
    const int *header, const float *own, const u8 *reasons, u8 *flags, u8 *out_reasons, int *alone,
    int *ticket)
{
    int number = header[HEADER_KEPT], count = *alone;
    bool whole = count >= least_alone && (float)count > share * (float)number;
    for (int item = blockIdx.x * APPLY_THREADS + threadIdx.x; item < 2 * number;
         item += gridDim.x * APPLY_THREADS) {
        int peak = item / 2, axis = item % 2;
        const float *mine = own + peak * OWN_ITEMS + 3 * axis;
        float *quantiles = offsets + item * levels;
        bool unfamiliar = reasons[peak] || whole;
        float factor = own[peak * OWN_ITEMS + OWN], least = 0;
        int last = levels - 1;
        if (unfamiliar) {
            const float *w = constants + WIDENING;
            float half = (quantiles[last] - quantiles[0]) * 0.5f;
            float narrow = NARROW_PX2 / (NARROW_PX2 + mine[2]), narrowness = 0.01f / mine[2];
            least = sqrtf(w[0] * half * half
                          + (w[1] * (1.0f - narrow) + w[2] * narrow) * mine[0] * mine[0]
                          + w[3] * mine[1] * mine[1] + w[4] * narrowness * narrowness
                          + w[5] * w[5]);
        }
        if (axis == 0) {
            u8 reason = reasons[peak];
            out_reasons[peak] = reason ? reason : whole ? WHOLE_FRAME : 0;
            if (unfamiliar)
                flags[peak] |= UNFAMILIAR;
        }
        float position = quantiles[middle];
        float down = (position - quantiles[0]) * factor, up = (quantiles[last] - position) * factor;
        float lower = factor, upper = factor;
        if (0 < down && down < least)
            lower *= least / down;
        if (0 < up && up < least)
            upper *= least / up;
        for (int quantile = 0; quantile < levels; quantile++) {
            if (quantile < middle)
                quantiles[quantile] = position - (position - quantiles[quantile]) * lower;
            else if (quantile > middle)
                quantiles[quantile] = position + (quantiles[quantile] - position) * upper;
        }
        // Ends that lie on the position cannot be stretched.
        if (middle > 0 && !(down > 0))
            quantiles[0] = position - least;
        if (middle < last && !(up > 0))
            quantiles[last] = position + least;
    }
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(ticket, 1) == gridDim.x - 1) {
        *alone = 0;
        *ticket = 0;
    }
}
