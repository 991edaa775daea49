// From a detector frame to the scaled patches of its peaks, and from a network's output to positions.
//
// The rules are those of edgexnas.peak_finding.PeakFinder and edgexnas.bragg; tests of a maximum are
// taken in float64, in the same order, so that the peaks are identical. Compile without contraction
// into fused multiply-adds (-fmad=false) and with
//   PIXEL                 the type of a pixel
//   PIXEL_IS_FLOAT        1 for floating point, else 0
//   PIXEL_MIN, PIXEL_MAX  the bounds of an integer PIXEL, as double
//
// Peaks are kept in the order of their flat index without atomics: each block of mark_peaks owns CHUNK
// consecutive pixels and lists its own peaks in order; gather_peaks puts the lists behind each other.

typedef unsigned char u8;
typedef unsigned long long u64;

#define THREADS 256
#define PER_THREAD 8
#define CHUNK (THREADS * PER_THREAD)
// Peaks lie at least three pixels apart, so that 8 consecutive pixels hold at most 4.
#define CHUNK_PEAKS (CHUNK / 2)

#define PATCH 11
#define CENTRE 5
#define AREA (PATCH * PATCH)
#define REACH 10
#define WIDE 21
#define BORDERED (WIDE + 2)
#define ASCENT_STEPS 32
#define CUT_THREADS 128
#define KEEP_THREADS 1024

#define SATURATED 1
#define EDGE 2
#define OVERLAP 4
#define MASKED 8

// What the host reads of each frame beside its peaks.
#define HEADER_FOUND 0
#define HEADER_KEPT 1
#define HEADER_BAD_PIXEL 2
#define HEADER_ITEMS 3
#define NO_BAD_PIXEL 0x7fffffff

// Write what each pixel must exceed.
extern "C" __global__ void __launch_bounds__(THREADS) threshold_map(
    const float *level, const float *noise, const u8 *mask, double minimum_counts, double noise_sigmas,
    int pixels, PIXEL *threshold)
{
    int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= pixels)
        return;
    double limit = minimum_counts;
    if (level) {
        double loud = noise_sigmas * (double)noise[pixel];
        limit = (loud > minimum_counts ? loud : minimum_counts) + (double)level[pixel];
    }
    bool hidden = mask && mask[pixel];
#if PIXEL_IS_FLOAT
    threshold[pixel] = hidden ? PIXEL_MAX : (PIXEL)limit;
#else
    // Whole counts exceed the limit exactly where they exceed its floor.
    double whole = floor(limit);
    whole = whole > PIXEL_MIN ? whole : PIXEL_MIN;
    threshold[pixel] = (!hidden && whole < PIXEL_MAX) ? (PIXEL)whole : (PIXEL)PIXEL_MAX;
#endif
}

// Does no usable one of the 5x5 pixels beat this one? Of equals the first in raster order wins.
static __device__ bool is_maximum(
    const PIXEL *frame, const u8 *mask, int height, int width, int row, int col)
{
    PIXEL value = frame[row * width + col];
    for (int r = row > 2 ? row - 2 : 0; r <= row + 2 && r < height; r++) {
        for (int c = col > 2 ? col - 2 : 0; c <= col + 2 && c < width; c++) {
            PIXEL other = frame[r * width + c];
            if (other < value || (mask && mask[r * width + c]))
                continue;
            if (other > value || r < row || (r == row && c < col))
                return false;
        }
    }
    return true;
}

static __device__ bool rises(
    double mean, double variance, double spread, double total, int number, double prominence)
{
    if (number == 0)
        return true;
    double around = total / number;
    double beside = (spread + (around > 0 ? around : 0)) / number;
    return mean - around >= prominence * sqrt(variance + beside);
}

// The tests of size, signal and prominence of a maximum.
static __device__ bool is_significant(
    const PIXEL *frame, const PIXEL *threshold, const u8 *mask, const float *level,
    const float *noise, int height, int width, int row, int col, int minimum_pixels, double snr,
    double prominence)
{
    double middle = 0, sides = 0, ends = 0, falling = 0, climbing = 0;
    int n_middle = 0, n_sides = 0, n_ends = 0, n_falling = 0, n_climbing = 0, lit = 0;
    for (int down = -2; down <= 2; down++) {
        int r = row + down;
        if (r < 0 || r >= height)
            continue;
        for (int across = -2; across <= 2; across++) {
            int c = col + across, place = r * width + c;
            if (c < 0 || c >= width || (mask && mask[place]))
                continue;
            double count = (double)frame[place];
            if (level)
                count -= (double)level[place];
            bool near_row = down >= -1 && down <= 1, near_col = across >= -1 && across <= 1;
            if (near_row && near_col) {
                middle += count;
                n_middle++;
                lit += frame[place] > threshold[place];
            } else if (near_row) {
                sides += count;
                n_sides++;
            } else if (near_col) {
                ends += count;
                n_ends++;
            }
            if (down * across >= 2) {
                falling += count;
                n_falling++;
            } else if (down * across <= -2) {
                climbing += count;
                n_climbing++;
            }
        }
    }
    if (lit < minimum_pixels)
        return false;
    double spread = 0;
    if (level) {
        spread = (double)noise[row * width + col];
        spread *= spread;
    }
    // The maximum itself is usable, so that n_middle is never 0.
    double mean = middle / n_middle;
    double variance = (spread + (mean > 0 ? mean : 0)) / n_middle;
    return mean >= snr * sqrt(variance)
        && rises(mean, variance, spread, sides, n_sides, prominence)
        && rises(mean, variance, spread, ends, n_ends, prominence)
        && rises(mean, variance, spread, falling, n_falling, prominence)
        && rises(mean, variance, spread, climbing, n_climbing, prominence);
}

// Sum over the block of what earlier threads gave; `sums` holds one number a thread, the totals after.
static __device__ int sum_before(int *sums, int mine)
{
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (int step = 1; step < blockDim.x; step *= 2) {
        int other = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
        __syncthreads();
        sums[threadIdx.x] += other;
        __syncthreads();
    }
    return sums[threadIdx.x] - mine;
}

// The widest load that 8 pixels fill.
template <int BYTES> struct Load { typedef uint4 type; };
template <> struct Load<1> { typedef uint2 type; };

// List the peaks of each CHUNK of pixels, in order. One block a chunk.
extern "C" __global__ void __launch_bounds__(THREADS, 4) mark_peaks(
    const PIXEL *frame, const PIXEL *threshold, const u8 *mask, const float *level,
    const float *noise, int height, int width, int minimum_pixels, double snr, double prominence,
    int *chunk_counts, int *chunk_peaks, int *header)
{
    typedef Load<sizeof(PIXEL)>::type load;
    const int loads = sizeof(PIXEL) * PER_THREAD / sizeof(load);
    __shared__ int sums[THREADS];
    __shared__ unsigned short candidates[CHUNK];
    __shared__ int accepted[THREADS];
    __shared__ int candidate_count, anything;
    int pixels = height * width;
    int first = blockIdx.x * CHUNK + threadIdx.x * PER_THREAD;
    unsigned lit = 0;
    accepted[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        candidate_count = anything = 0;
    __syncthreads();
    if (first + PER_THREAD <= pixels) {
        // Most lit pixels lie beside a brighter one. Where that could be masked, or rows end more
        // than once in 8 pixels, it is left to is_maximum.
        bool comparable = !mask && width >= PER_THREAD;
        int row_end = width - first % width;
        union { load loads[loads]; PIXEL pixels[PER_THREAD]; } values, limits;
#pragma unroll
        for (int word = 0; word < loads; word++) {
            values.loads[word] = ((const load *)(frame + first))[word];
            limits.loads[word] = ((const load *)(threshold + first))[word];
        }
#pragma unroll
        for (int k = 0; k < PER_THREAD; k++) {
            PIXEL value = values.pixels[k];
            bool beaten = false;
            if (comparable) {
                if (k > 0 && k != row_end)
                    beaten = values.pixels[k - 1] >= value;
                if (k + 1 < PER_THREAD && k + 1 != row_end)
                    beaten = beaten || values.pixels[k + 1] > value;
            }
            lit |= (unsigned)(value > limits.pixels[k] && !beaten) << k;
#if PIXEL_IS_FLOAT
            // NaN and infinity differ from themselves, minus themselves.
            if (!(value - value == 0) && !(mask && mask[first + k]))
                atomicMin(&header[HEADER_BAD_PIXEL], first + k);
#endif
        }
    } else {
        for (int k = 0; k < PER_THREAD && first + k < pixels; k++) {
            PIXEL value = frame[first + k];
            lit |= (unsigned)(value > threshold[first + k]) << k;
#if PIXEL_IS_FLOAT
            if (!(value - value == 0) && !(mask && mask[first + k]))
                atomicMin(&header[HEADER_BAD_PIXEL], first + k);
#endif
        }
    }
    // Candidates go to all threads alike, because they crowd in few. Their order does not matter:
    // what is accepted is noted by place.
    if (lit) {
        int count = 0;
        for (unsigned rest = lit; rest; rest &= rest - 1)
            count++;
        int place = atomicAdd(&candidate_count, count);
        for (int k = 0; k < PER_THREAD; k++)
            if (lit >> k & 1)
                candidates[place++] = (unsigned short)(threadIdx.x * PER_THREAD + k);
    }
    __syncthreads();
    for (int one = threadIdx.x; one < candidate_count; one += THREADS) {
        int pixel = blockIdx.x * CHUNK + candidates[one];
        int row = pixel / width, col = pixel % width;
        if (is_maximum(frame, mask, height, width, row, col)
            && is_significant(frame, threshold, mask, level, noise, height, width, row, col,
                              minimum_pixels, snr, prominence)) {
            atomicOr(&accepted[candidates[one] / PER_THREAD], 1 << candidates[one] % PER_THREAD);
            atomicOr(&anything, 1);
        }
    }
    __syncthreads();
    if (!anything) {
        if (threadIdx.x == 0)
            chunk_counts[blockIdx.x] = 0;
        return;
    }
    int mine = 0;
    for (unsigned rest = accepted[threadIdx.x]; rest; rest &= rest - 1)
        mine++;
    int place = sum_before(sums, mine);
    for (int k = 0; k < PER_THREAD; k++)
        if (accepted[threadIdx.x] >> k & 1)
            chunk_peaks[blockIdx.x * CHUNK_PEAKS + place++] = first + k;
    if (threadIdx.x == 0)
        chunk_counts[blockIdx.x] = sums[THREADS - 1];
}

// Put the chunks' lists behind each other. One block a chunk; the last one tells the total.
extern "C" __global__ void __launch_bounds__(THREADS) gather_peaks(
    const int *chunk_counts, const int *chunk_peaks, int *peaks, int *header)
{
    __shared__ int sums[THREADS];
    int count = chunk_counts[blockIdx.x];
    bool last = blockIdx.x == gridDim.x - 1;
    if (count == 0 && !last)
        return;
    int before = 0;
    for (int chunk = threadIdx.x; chunk < blockIdx.x; chunk += THREADS)
        before += chunk_counts[chunk];
    sum_before(sums, before);
    int offset = sums[THREADS - 1];
    for (int peak = threadIdx.x; peak < count; peak += THREADS)
        peaks[offset + peak] = chunk_peaks[blockIdx.x * CHUNK_PEAKS + peak];
    if (last && threadIdx.x == 0)
        header[HEADER_FOUND] = offset + count;
}

// A number that orders as the counts above background do.
static __device__ u64 brightness(const PIXEL *frame, const float *level, int pixel)
{
    double count = (double)frame[pixel];
    if (level)
        count -= (double)level[pixel];
    // Adding 0 turns -0 into +0, which are equal counts and must be equal keys.
    u64 bits = (u64)__double_as_longlong(count + 0.0);
    return bits >> 63 ? ~bits : bits | 1ULL << 63;
}

// Keep the brightest `capacity` peaks in their order; of equals the first. One block.
extern "C" __global__ void __launch_bounds__(KEEP_THREADS) keep_brightest(
    const PIXEL *frame, const float *level, const int *peaks, int capacity, int *kept, int *header)
{
    __shared__ int sums[KEEP_THREADS];
    __shared__ int histogram[256];
    __shared__ u64 limit;
    __shared__ int missing;
    int found = header[HEADER_FOUND];
    if (found <= capacity) {
        for (int peak = threadIdx.x; peak < found; peak += KEEP_THREADS)
            kept[peak] = peaks[peak];
        if (threadIdx.x == 0)
            header[HEADER_KEPT] = found;
        return;
    }
    if (threadIdx.x == 0) {
        limit = 0;
        missing = capacity;
    }
    // Find the least brightness that is kept, a byte at a time from the highest.
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        u64 prefix = limit;
        if (threadIdx.x < 256)
            histogram[threadIdx.x] = 0;
        __syncthreads();
        for (int peak = threadIdx.x; peak < found; peak += KEEP_THREADS) {
            u64 key = brightness(frame, level, peaks[peak]);
            if (shift == 56 || key >> (shift + 8) == prefix >> (shift + 8))
                atomicAdd(&histogram[key >> shift & 255], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int byte = 255, rest = missing;
            while (histogram[byte] < rest)
                rest -= histogram[byte--];
            missing = rest;
            limit = prefix | (u64)byte << shift;
        }
    }
    __syncthreads();
    u64 least = limit;
    int equals_left = missing, place = 0;
    for (int start = 0; start < found; start += KEEP_THREADS) {
        int peak = start + threadIdx.x;
        u64 key = peak < found ? brightness(frame, level, peaks[peak]) : 0;
        bool equal = peak < found && key == least;
        int equals_before = sum_before(sums, equal);
        int equals = sums[KEEP_THREADS - 1];
        __syncthreads();
        bool stays = peak < found && (key > least || (equal && equals_before < equals_left));
        int before = sum_before(sums, stays);
        int stay = sums[KEEP_THREADS - 1];
        __syncthreads();
        if (stays)
            kept[place + before] = peaks[peak];
        place += stay;
        equals_left -= equals < equals_left ? equals : equals_left;
    }
    if (threadIdx.x == 0)
        header[HEADER_KEPT] = capacity;
}

// Cut, clean and scale the patch of each peak. One block a peak at a time.
extern "C" __global__ void __launch_bounds__(CUT_THREADS, 8) cut_patches(
    const PIXEL *frame, const u8 *mask, const float *level, int height, int width,
    double saturation, const int *kept, const int *header, float *scaled, float *counts, u8 *flags,
    float *intensities)
{
    __shared__ float wide[BORDERED * BORDERED];
    __shared__ short target[WIDE * WIDE];
    __shared__ u8 tops[WIDE * WIDE];
    __shared__ float low[CUT_THREADS], high[CUT_THREADS];
    __shared__ int found_flags;
    int number = header[HEADER_KEPT], me = threadIdx.x;
    for (int peak = blockIdx.x; peak < number; peak += gridDim.x) {
        int row = kept[peak] / width, col = kept[peak] % width;
        for (int place = me; place < WIDE * WIDE; place += CUT_THREADS)
            tops[place] = 0;
        if (me == 0)
            found_flags = 0;
        __syncthreads();
        // Other peaks within reach; the list is in the order of rows.
        for (int side = -1; side <= 1; side += 2) {
            for (int other = peak + side * (me + 1); other >= 0 && other < number;
                 other += side * CUT_THREADS) {
                int down = kept[other] / width - row, across = kept[other] % width - col;
                if (down * side > REACH)
                    break;
                if (across >= -REACH && across <= REACH) {
                    tops[(down + REACH) * WIDE + across + REACH] = 1;
                    atomicOr(&found_flags, OVERLAP);
                }
            }
        }
        float count = 0;
        if (me < AREA) {
            int r = row + me / PATCH - CENTRE, c = col + me % PATCH - CENTRE;
            if (r < 0 || r >= height || c < 0 || c >= width) {
                atomicOr(&found_flags, EDGE);
            } else if (mask && mask[r * width + c]) {
                atomicOr(&found_flags, MASKED);
            } else {
                PIXEL value = frame[r * width + c];
                if ((double)value >= saturation)
                    atomicOr(&found_flags, SATURATED);
                count = (float)value;
                if (level)
                    count -= level[r * width + c];
                count = count > 0 ? count : 0;
            }
        }
        __syncthreads();
        if (found_flags & OVERLAP) {
            // A pixel belongs to the peak that steepest ascent over raw counts reaches.
            for (int place = me; place < BORDERED * BORDERED; place += CUT_THREADS) {
                int down = place / BORDERED - 1, across = place % BORDERED - 1;
                int r = row + down - REACH, c = col + across - REACH;
                bool border = down < 0 || down >= WIDE || across < 0 || across >= WIDE;
                float raw = border ? -1 : 0;
                if (!border && r >= 0 && r < height && c >= 0 && c < width
                    && !(mask && mask[r * width + c])) {
                    raw = (float)frame[r * width + c];
                    // Detectors mark gaps by negative counts.
                    raw = raw > 0 ? raw : 0;
                }
                wide[place] = raw;
            }
            __syncthreads();
            for (int place = me; place < WIDE * WIDE; place += CUT_THREADS) {
                int corner = place / WIDE * BORDERED + place % WIDE;
                float highest = wide[corner];
                int step = -WIDE - 1;
                for (int down = 0; down < 3; down++) {
                    for (int across = 0; across < 3; across++) {
                        float neighbour = wide[corner + down * BORDERED + across];
                        if (neighbour > highest) {
                            highest = neighbour;
                            step = (down - 1) * WIDE + across - 1;
                        }
                    }
                }
                target[place] = (short)(place + step);
            }
            __syncthreads();
            if (me < AREA) {
                int place = (me / PATCH + REACH - CENTRE) * WIDE + me % PATCH + REACH - CENTRE;
                for (int step = 0; step < ASCENT_STEPS && target[place] != place; step++)
                    place = target[place];
                if (tops[place])
                    count = 0;
            }
        }
        // Threads beyond the patch change neither extreme.
        low[me] = me < AREA ? count : 3.4e38f;
        high[me] = me < AREA ? count : -3.4e38f;
        __syncthreads();
        for (int half = CUT_THREADS / 2; half; half /= 2) {
            if (me < half) {
                low[me] = low[me + half] < low[me] ? low[me + half] : low[me];
                high[me] = high[me + half] > high[me] ? high[me + half] : high[me];
            }
            __syncthreads();
        }
        float span = high[0] - low[0];
        if (me < AREA) {
            scaled[peak * AREA + me] = (count - low[0]) / (span > 0 ? span : 1.0f);
            if (counts)
                counts[peak * AREA + me] = count;
        }
        if (me == 0) {
            double intensity = (double)frame[kept[peak]];
            if (level)
                intensity -= (double)level[kept[peak]];
            intensities[peak] = (float)intensity;
            flags[peak] = (u8)found_flags;
        }
        __syncthreads();
    }
}

// Turn the network's offsets into frame coordinates, and hand all results to the host.
//
// offsets, quantiles: (n, 2, levels); positions, intervals, maxima: (n, 2).
extern "C" __global__ void __launch_bounds__(THREADS, 4) decode_peaks(
    const float *offsets, int levels, int middle, int width, const int *kept, const u8 *flags,
    const float *intensities, int *header, float *positions, float *intervals,
    float *quantiles, int *maxima, float *out_intensities, u8 *out_flags, int *out_header)
{
    int number = header[HEADER_KEPT];
    int start = blockIdx.x * THREADS + threadIdx.x, stride = gridDim.x * THREADS;
    for (int item = start; item < number * 2 * levels; item += stride) {
        int peak = item / (2 * levels), axis = item / levels % 2;
        int corner = (axis ? kept[peak] % width : kept[peak] / width) - CENTRE;
        quantiles[item] = (offsets[item] + (float)CENTRE) + (float)corner;
    }
    for (int item = start; item < number * 2; item += stride) {
        int pixel = kept[item / 2], place = item % 2 ? pixel % width : pixel / width;
        const float *offset = offsets + item * levels;
        positions[item] = (offset[middle] + (float)CENTRE) + (float)(place - CENTRE);
        intervals[item] = offset[levels - 1] - offset[0];
        maxima[item] = place;
    }
    for (int peak = start; peak < number; peak += stride) {
        out_intensities[peak] = intensities[peak];
        out_flags[peak] = flags[peak];
    }
    if (start < HEADER_ITEMS)
        out_header[start] = header[start];
    // Ready for the next frame, which only ever lowers it.
    if (start == HEADER_BAD_PIXEL)
        header[start] = NO_BAD_PIXEL;
}
