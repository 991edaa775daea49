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
// consecutive pixels and lists what may be peaks; judge_maxima lists the peaks among them in order, and
// gather_peaks puts the lists behind each other.

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
// One for each 32 pixels of a chunk.
#define JUDGE_THREADS (CHUNK / 32)

// What mark_peaks says of a pixel, beside its place in the chunk.
#define MAY_BE_PLATEAU 0x8000u
#define IS_MAXIMUM 0x4000u

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

// As in edgexnas.peak_finding.settings.
#define PLATEAU_SIDE 15
#define PLATEAU_WINDOW (2 * PLATEAU_SIDE + 1)
#define RIDGE_WAYS 8
#define RIDGE_GATE 0.5
#define NO_NUMBER sqrt(-1.0)

#define WARP 32
#define EVERY_LANE 0xffffffffu
// Pixels of a window of 5x5 as bits in raster order: the inner 3x3, beside these, above and below
// these, and three in each corner, by the two corners of one diagonal.
#define NEAR_BOTH 0x00739c0u
#define BESIDE 0x008c620u
#define ABOVE_AND_BELOW 0x0e0000eu
#define FALLING 0x1880023u
#define CLIMBING 0x0308218u

static __device__ const short RIDGE_NEAR[RIDGE_WAYS][2]
    = { { 0, 3 }, { 1, 3 }, { 2, 2 }, { 3, 1 }, { 3, 0 }, { 3, -1 }, { 2, -2 }, { 1, -3 } };
static __device__ const short RIDGE_FAR[RIDGE_WAYS][2]
    = { { 0, 5 }, { 2, 5 }, { 4, 4 }, { 5, 2 }, { 5, 0 }, { 5, -2 }, { 4, -4 }, { 2, -5 } };

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
        bool beaten = false;
        // A row's loads wait for none of its tests.
#pragma unroll
        for (int across = -2; across <= 2; across++) {
            int c = col + across;
            if (c < 0 || c >= width)
                continue;
            PIXEL other = frame[r * width + c];
            if (other < value || (mask && mask[r * width + c]))
                continue;
            beaten = beaten || other > value || r < row || (r == row && c < col);
        }
        if (beaten)
            return false;
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

// What the tests of peaks are told, of each frame alike.
struct Rules {
    const PIXEL *threshold;
    const u8 *mask;
    const float *level, *noise;
    int height, width, minimum_pixels;
    double sigmas, minimum_counts, snr, prominence, ridge_fraction, saturation, rim;
};

static __device__ double counts_at(const PIXEL *frame, const float *level, int place)
{
    double count = (double)frame[place];
    if (level)
        count -= (double)level[place];
    return count;
}

// What a lit pixel beside a maximum with this noise exceeds.
static __device__ double least_of(const Rules &rules, double noise)
{
    double least = rules.minimum_counts;
    if (rules.level) {
        double loud = rules.sigmas * noise;
        least = loud > least ? loud : least;
    }
    return least * 0.5;
}

// The test of size.
static __device__ bool is_large_enough(const PIXEL *frame, const Rules &rules, int row, int col)
{
    double noise = rules.level ? (double)rules.noise[row * rules.width + col] : 0;
    double least = least_of(rules, noise);
    int lit = 0;
    for (int r = row > 0 ? row - 1 : 0; r <= row + 1 && r < rules.height; r++)
        for (int c = col > 0 ? col - 1 : 0; c <= col + 1 && c < rules.width; c++)
            if (!(rules.mask && rules.mask[r * rules.width + c]))
                lit += counts_at(frame, rules.level, r * rules.width + c) > least;
    return lit >= rules.minimum_pixels;
}

// Mean counts above background of the usable ones of 3x3 pixels; NaN without any.
static __device__ double block_mean(const PIXEL *frame, const Rules &rules, int row, int col)
{
    double total = 0;
    int number = 0;
    for (int r = row > 0 ? row - 1 : 0; r <= row + 1 && r < rules.height; r++) {
        for (int c = col > 0 ? col - 1 : 0; c <= col + 1 && c < rules.width; c++) {
            if (rules.mask && rules.mask[r * rules.width + c])
                continue;
            total += counts_at(frame, rules.level, r * rules.width + c);
            number++;
        }
    }
    return number ? total / number : NO_NUMBER;
}

// The test of ridges, by a whole warp: each lane has the mean of one block of two distances on two
// sides in eight directions.
static __device__ bool is_on_ridge(const PIXEL *frame, const Rules &rules, int row, int col)
{
    int lane = threadIdx.x % WARP, way = lane / 4, step = lane % 4, side = 1 - 2 * (step % 2);
    const short *to = step < 2 ? RIDGE_FAR[way] : RIDGE_NEAR[way];
    double height = block_mean(frame, rules, row, col), enough = rules.ridge_fraction * height;
    double value = block_mean(frame, rules, row + side * to[0], col + side * to[1]);
    unsigned all_high = __ballot_sync(EVERY_LANE, !(value <= enough));
    unsigned all_known = __ballot_sync(EVERY_LANE, value == value);
    unsigned known = all_known >> 4 * way & 15;
    double low = 0, base = 0;
    bool first = true;
    // The far blocks of the direction across lie half of the lanes further.
    int across = (lane ^ WARP / 2) & ~3;
#pragma unroll
    for (int other = 0; other < 4; other++) {
        double along = __shfl_sync(EVERY_LANE, value, (lane & ~3) + other);
        if (known >> other & 1) {
            low = first || along < low ? along : low;
            first = false;
        }
        double beside = __shfl_sync(EVERY_LANE, value, across + other);
        // NaN is no more than anything.
        if (other < 2 && beside > base)
            base = beside;
    }
    bool high = (all_high >> 4 * way & 15) == 15 && __popc(known) >= 3;
    bool ridge = high && low - base > rules.ridge_fraction * (height - base);
    return __any_sync(EVERY_LANE, ridge);
}

// Is this pixel the centre of a saturated plateau that is no larger than a spot?
static __device__ bool is_plateau_centre(const PIXEL *frame, const Rules &rules, int row, int col)
{
    // Rows of a window, with one more on each end; a pixel is a bit. Unrolled, they would be kept
    // in registers, and spilled for all pixels.
    int can[PLATEAU_WINDOW + 2], got[PLATEAU_WINDOW + 2];
    bool full = false, grows = true;
#pragma unroll 1
    for (int down = 0; down < PLATEAU_WINDOW + 2; down++)
        can[down] = got[down] = 0;
#pragma unroll 1
    for (int down = 0; down < PLATEAU_WINDOW; down++) {
        int r = row + down - PLATEAU_SIDE;
        if (r < 0 || r >= rules.height)
            continue;
#pragma unroll 1
        for (int across = 0; across < PLATEAU_WINDOW; across++) {
            int c = col + across - PLATEAU_SIDE, place = r * rules.width + c;
            if (c < 0 || c >= rules.width || (rules.mask && rules.mask[place]))
                continue;
            if ((double)frame[place] >= rules.rim)
                can[down + 1] |= 1 << across;
        }
    }
    got[PLATEAU_SIDE + 1] = 1 << PLATEAU_SIDE;
    while (grows) {
        grows = false;
#pragma unroll 1
        for (int down = 1; down <= PLATEAU_WINDOW; down++) {
            int spread = got[down - 1] | got[down] | got[down + 1];
            spread = (spread | spread << 1 | spread >> 1) & can[down];
            grows = grows || spread != got[down];
            got[down] = spread;
        }
    }
    int number = 0, rows = 0, cols = 0, first = -1;
    int top = PLATEAU_WINDOW, left = PLATEAU_WINDOW, bottom = 0, right = 0;
#pragma unroll 1
    for (int down = 0; down < PLATEAU_WINDOW; down++) {
#pragma unroll 1
        for (int across = 0; across < PLATEAU_WINDOW; across++) {
            if (!(got[down + 1] >> across & 1))
                continue;
            int place = (row + down - PLATEAU_SIDE) * rules.width + col + across - PLATEAU_SIDE;
            full = full || ((double)frame[place] >= rules.saturation
                            && frame[place] > rules.threshold[place]);
            first = first < 0 ? down * PLATEAU_WINDOW + across : first;
            number++;
            rows += down;
            cols += across;
            top = down < top ? down : top;
            bottom = down > bottom ? down : bottom;
            left = across < left ? across : left;
            right = across > right ? across : right;
        }
    }
    if (!full || bottom - top >= PLATEAU_SIDE || right - left >= PLATEAU_SIDE)
        return false;
    int down = (2 * rows + number) / (2 * number), across = (2 * cols + number) / (2 * number);
    if (!(got[down + 1] >> across & 1)) {
        down = first / PLATEAU_WINDOW;
        across = first % PLATEAU_WINDOW;
    }
    return down == PLATEAU_SIDE && across == PLATEAU_SIDE;
}

// The tests of size, signal and prominence of a maximum, and that it lies on no ridge, by a whole
// warp: a lane has one of 5x5 pixels.
static __device__ bool is_significant(const PIXEL *frame, const Rules &rules, int row, int col)
{
    const float *level = rules.level;
    double prominence = rules.prominence;
    int lane = threadIdx.x % WARP, r = row + lane / 5 - 2, c = col + lane % 5 - 2;
    bool usable = lane < 25 && r >= 0 && r < rules.height && c >= 0 && c < rules.width
        && !(rules.mask && rules.mask[r * rules.width + c]);
    double mine = usable ? counts_at(frame, level, r * rules.width + c) : 0;
    double spread = level ? (double)rules.noise[row * rules.width + col] : 0;
    unsigned there = __ballot_sync(EVERY_LANE, usable);
    unsigned bright = __ballot_sync(EVERY_LANE, usable && mine > least_of(rules, spread));
    if (__popc(bright & NEAR_BOTH) < rules.minimum_pixels)
        return false;
    // In the order of the reference, because sums of float64 depend on it; 0 changes none.
    double middle = 0, sides = 0, ends = 0, falling = 0, climbing = 0;
#pragma unroll
    for (int place = 0; place < 25; place++) {
        double count = __shfl_sync(EVERY_LANE, mine, place);
        if (NEAR_BOTH >> place & 1)
            middle += count;
        if (BESIDE >> place & 1)
            sides += count;
        if (ABOVE_AND_BELOW >> place & 1)
            ends += count;
        if (FALLING >> place & 1)
            falling += count;
        if (CLIMBING >> place & 1)
            climbing += count;
    }
    int n_middle = __popc(there & NEAR_BOTH), n_sides = __popc(there & BESIDE);
    int n_ends = __popc(there & ABOVE_AND_BELOW);
    int n_falling = __popc(there & FALLING), n_climbing = __popc(there & CLIMBING);
    spread *= spread;
    // The maximum itself is usable, so that n_middle is never 0.
    double mean = middle / n_middle;
    double variance = (spread + (mean > 0 ? mean : 0)) / n_middle;
    if (!(mean >= rules.snr * sqrt(variance)
          && rises(mean, variance, spread, sides, n_sides, prominence)
          && rises(mean, variance, spread, ends, n_ends, prominence)
          && rises(mean, variance, spread, falling, n_falling, prominence)
          && rises(mean, variance, spread, climbing, n_climbing, prominence)))
        return false;
    double gate = RIDGE_GATE * mean;
    bool wide = (n_sides && sides / n_sides > gate) || (n_ends && ends / n_ends > gate)
        || (n_falling && falling / n_falling > gate)
        || (n_climbing && climbing / n_climbing > gate);
    return !(wide && is_on_ridge(frame, rules, row, col));
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

// List what may be peaks of each CHUNK of pixels, in any order: maxima, and pixels of plateaus. One
// block a chunk; what the list holds is judged by judge_maxima, of which a block needs more registers.
extern "C" __global__ void __launch_bounds__(THREADS, 6) mark_peaks(
    const PIXEL *frame, const PIXEL *threshold, const u8 *mask, int height, int width,
    double saturation, double rim, int *chunk_counts, unsigned short *chunk_marks, int *header)
{
    typedef Load<sizeof(PIXEL)>::type load;
    const int loads = sizeof(PIXEL) * PER_THREAD / sizeof(load);
    __shared__ unsigned short candidates[CHUNK];
    __shared__ int candidate_count, listed;
    int pixels = height * width;
    int first = blockIdx.x * CHUNK + threadIdx.x * PER_THREAD;
    unsigned lit = 0;
    if (threadIdx.x == 0)
        candidate_count = listed = 0;
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
            // The centre of a saturated plateau has equals around it.
            if (value > limits.pixels[k] && (!beaten || (double)value >= rim))
                lit |= 1u << k;
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
        int place = atomicAdd(&candidate_count, __popc(lit));
        for (int k = 0; k < PER_THREAD; k++)
            if (lit >> k & 1)
                candidates[place++] = (unsigned short)(threadIdx.x * PER_THREAD + k);
    }
    __syncthreads();
    for (int one = threadIdx.x; one < candidate_count; one += THREADS) {
        int pixel = blockIdx.x * CHUNK + candidates[one];
        double value = (double)frame[pixel];
        unsigned mark = value >= rim ? MAY_BE_PLATEAU : 0;
        if (value < saturation && is_maximum(frame, mask, height, width, pixel / width, pixel % width))
            mark |= IS_MAXIMUM;
        if (mark)
            chunk_marks[blockIdx.x * CHUNK + atomicAdd(&listed, 1)]
                = (unsigned short)(mark | candidates[one]);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        chunk_counts[blockIdx.x] = listed;
}

// Judge what mark_peaks listed; the peaks among it are listed in order in its place. One block a
// chunk, a warp one maximum.
extern "C" __global__ void __launch_bounds__(JUDGE_THREADS, 16) judge_maxima(
    const PIXEL *frame, const PIXEL *threshold, const u8 *mask, const float *level,
    const float *noise, int height, int width, int minimum_pixels, double sigmas,
    double minimum_counts, double snr, double prominence, double ridge_fraction, double saturation,
    double rim, int *chunk_counts, int *chunk_peaks)
{
    Rules rules = { threshold, mask, level, noise, height, width, minimum_pixels, sigmas,
                    minimum_counts, snr,
                    prominence, ridge_fraction, saturation, rim };
    __shared__ int sums[JUDGE_THREADS];
    __shared__ unsigned accepted[JUDGE_THREADS];
    int number = chunk_counts[blockIdx.x], me = threadIdx.x;
    if (number == 0)
        return;
    const unsigned short *marks = (const unsigned short *)(chunk_peaks + blockIdx.x * CHUNK_PEAKS);
    accepted[me] = 0;
    __syncthreads();
    // Plateaus are few or side by side: a thread takes one.
    for (int one = me; one < number; one += JUDGE_THREADS) {
        unsigned mark = marks[one], place = mark & CHUNK - 1;
        int pixel = blockIdx.x * CHUNK + place, row = pixel / width, col = pixel % width;
        if (mark & MAY_BE_PLATEAU && is_plateau_centre(frame, rules, row, col)
            && is_large_enough(frame, rules, row, col))
            atomicOr(&accepted[place / 32], 1u << place % 32);
    }
    for (int one = me / WARP; one < number; one += JUDGE_THREADS / WARP) {
        unsigned mark = marks[one], place = mark & CHUNK - 1;
        int pixel = blockIdx.x * CHUNK + place;
        if (mark & IS_MAXIMUM && is_significant(frame, rules, pixel / width, pixel % width)
            && me % WARP == 0)
            atomicOr(&accepted[place / 32], 1u << place % 32);
    }
    // From here on the list holds peaks.
    __syncthreads();
    unsigned mine = accepted[me];
    int to = blockIdx.x * CHUNK_PEAKS + sum_before(sums, __popc(mine));
    for (; mine; mine &= mine - 1)
        chunk_peaks[to++] = blockIdx.x * CHUNK + me * 32 + __ffs(mine) - 1;
    if (me == 0)
        chunk_counts[blockIdx.x] = sums[JUDGE_THREADS - 1];
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
    u64 bits = (u64)__double_as_longlong(counts_at(frame, level, pixel) + 0.0);
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
    __shared__ float low[CUT_THREADS / WARP], high[CUT_THREADS / WARP];
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
        float least = me < AREA ? count : 3.4e38f, most = me < AREA ? count : -3.4e38f;
#pragma unroll
        for (int other = WARP / 2; other; other /= 2) {
            least = fminf(least, __shfl_xor_sync(EVERY_LANE, least, other));
            most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, other));
        }
        if (me % WARP == 0) {
            low[me / WARP] = least;
            high[me / WARP] = most;
        }
        __syncthreads();
#pragma unroll
        for (int other = 0; other < CUT_THREADS / WARP; other++) {
            least = fminf(least, low[other]);
            most = fmaxf(most, high[other]);
        }
        float span = most - least;
        if (me < AREA) {
            scaled[peak * AREA + me] = (count - least) / (span > 0 ? span : 1.0f);
            if (counts)
                counts[peak * AREA + me] = count;
        }
        if (me == 0) {
            intensities[peak] = (float)counts_at(frame, level, kept[peak]);
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
