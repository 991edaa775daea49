// Runs a CUDA source's kernels on the CPU: blocks one after the other, the threads of a block as
// coroutines that take turns at __syncthreads() and at what the lanes of a warp do together. It has
// what these kernels use and nothing else.
//
// Not seen here: races between barriers (threads run whole stretches between them, in order), and
// anything about speed. compute-sanitizer on a GPU looks for the former.
#include <ucontext.h>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

struct Index { int x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;
struct float2 { float x, y; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };

#define CUDA_ON_CPU
// Whether a block's last thread takes the first turn.
extern "C" { int last_first = 0; }
#define __global__
#define __device__
#define __host__
#define INLINE inline
#define SHARED_MEMORY(name) alignas(128) static char name[232448]
#define __shared__ static
#define __launch_bounds__(...)

static inline int atomicAdd(int *place, int value) { int old = *place; *place += value; return old; }
template <class T> static inline T atomicOr(T *place, T value) { T old = *place; *place |= value; return old; }
static inline int atomicMin(int *place, int value) { int old = *place; if (value < old) *place = value; return old; }
static inline long long __double_as_longlong(double value) { long long bits; memcpy(&bits, &value, 8); return bits; }
static inline int __float_as_int(float value) { int bits; memcpy(&bits, &value, 4); return bits; }
static inline float __int_as_float(int bits) { float value; memcpy(&value, &bits, 4); return value; }

struct Thread {
    ucontext_t context;
    bool done, waits;
    int exchanges;
};

// What the lanes of a warp show each other. Two places in turn: nobody can be two exchanges ahead.
struct Warp {
    int arrived[2];
    char shown[2][32][32];
};

static ucontext_t scheduler;
static std::vector<Thread> threads;
static std::vector<Warp> warps;
static std::vector<char> stacks;
static std::function<void()> body;
static int running;
static const size_t STACK = 32768;

static inline void let_others_run()
{
    int me = running;
    swapcontext(&threads[me].context, &scheduler);
    threadIdx = {me, 0, 0};
}

static inline void __syncthreads()
{
    threads[running].waits = true;
    let_others_run();
}

static void run_thread()
{
    int me = running;
    threadIdx = {me, 0, 0};
    body();
    threads[me].done = true;
    swapcontext(&threads[me].context, &scheduler);
}

// Threads that are done do not keep a barrier waiting, as on a GPU since Volta.
static void run_block()
{
    warps.assign((blockDim.x + 31) / 32, Warp());
    for (int t = 0; t < blockDim.x; t++) {
        Thread &thread = threads[t];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = &stacks[t * STACK];
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = &scheduler;
        thread.done = thread.waits = false;
        thread.exchanges = 0;
        makecontext(&thread.context, run_thread, 0);
    }
    for (bool some = true; some;) {
        some = false;
        bool all_wait = true;
        for (int turn = 0; turn < blockDim.x; turn++) {
            // The last first shows what must not run ahead of the first threads.
            int t = last_first ? blockDim.x - 1 - turn : turn;
            if (threads[t].done || threads[t].waits)
                continue;
            running = t;
            swapcontext(&scheduler, &threads[t].context);
            all_wait = all_wait && (threads[t].waits || threads[t].done);
        }
        for (int t = 0; t < blockDim.x; t++) {
            some = some || !threads[t].done;
            if (all_wait)
                threads[t].waits = false;
        }
    }
}

// ---- what the lanes of a warp do together: every lane of it, in the same order ----

// Shows `mine` to the warp and returns what all 32 lanes show.
template <class T> static const T *exchange(const T &mine)
{
    static_assert(sizeof(T) <= 32, "no room to show it");
    int me = running, lane = me % 32, number = threads[me].exchanges++, place = number % 2;
    Warp &warp = warps[me / 32];
    memcpy(warp.shown[place][lane], &mine, sizeof(T));
    warp.arrived[place]++;
    while (warp.arrived[place] < 32 * (number / 2 + 1))
        let_others_run();
    static T all[32];
    for (int other = 0; other < 32; other++)
        memcpy(&all[other], warp.shown[place][other], sizeof(T));
    return all;
}

static inline float __shfl_xor_sync(unsigned, float value, int other) { return exchange(value)[(running % 32) ^ other]; }
static inline double __shfl_sync(unsigned, double value, int lane) { return exchange(value)[lane]; }
static inline int __ffs(unsigned word) { return __builtin_ffs(word); }
static inline int __popc(unsigned word) { return __builtin_popcount(word); }

static inline unsigned __ballot_sync(unsigned, bool mine)
{
    const bool *all = exchange(mine);
    unsigned word = 0;
    for (int lane = 0; lane < 32; lane++)
        word |= (unsigned)all[lane] << lane;
    return word;
}

static inline bool __any_sync(unsigned lanes, bool mine) { return __ballot_sync(lanes, mine) != 0; }

static inline void __syncwarp() { exchange(0); }

static inline float half_as_float(uint16_t bits) { _Float16 half; memcpy(&half, &bits, 2); return half; }
static inline unsigned float_as_half(float value) { _Float16 half = value; uint16_t bits; memcpy(&bits, &half, 2); return bits; }
static inline unsigned as_halves(float low, float high) { return float_as_half(low) | float_as_half(high) << 16; }
static inline void from_halves(unsigned pair, float &low, float &high) { low = half_as_float(pair); high = half_as_float(pair >> 16); }
static inline int as_int8(float value) { value = nearbyintf(value); return value > 127 ? 127 : value < -128 ? -128 : (int)value; }
static inline unsigned as_bytes(float first, float second, unsigned rest = 0) { return (as_int8(first) & 255) | (as_int8(second) & 255) << 8 | rest << 16; }
static inline float reciprocal(float value) { return 1.0f / value; }
static inline float power_of_two(float value) { return exp2f(value); }
template <int OFFSET, class T> static inline void store_if(bool there, char *to, T value) { if (there) memcpy(to + OFFSET, &value, sizeof(T)); }
static inline void copy_chunk(char *to, const char *from) { memcpy(to, from, 16); }
static inline int hidden_zero() { return 0; }
static inline void end_of_copies() {}
template <int> static inline void wait_for_copies() {}

struct Row { const char *at; };

// ldmatrix: lanes 8 i to 8 i + 7 have the rows of matrix i; a lane gets two elements of each.
template <int OFFSET> static inline void load_matrices(unsigned (&to)[4], const char *row)
{
    row += OFFSET;
    if ((size_t)row % 16) abort();
    const Row *rows = exchange(Row{row});
    int lane = running % 32;
    for (int i = 0; i < 4; i++)
        memcpy(&to[i], rows[8 * i + lane / 4].at + lane % 4 * 4, 4);
}

static inline void load_transposed(unsigned (&to)[4], const char *row)
{
    if ((size_t)row % 16) abort();
    const Row *rows = exchange(Row{row});
    int lane = running % 32;
    for (int i = 0; i < 4; i++) {
        uint16_t low, high;
        memcpy(&low, rows[8 * i + lane % 4 * 2].at + lane / 4 * 2, 2);
        memcpy(&high, rows[8 * i + lane % 4 * 2 + 1].at + lane / 4 * 2, 2);
        to[i] = low | high << 16;
    }
}

struct Operands { unsigned a[4], b[2]; };

// mma.m16n8k16 of float16: a lane has, of A, rows lane / 4 and 8 more, columns 2 (lane % 4) and 8 more.
static inline void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    const Operands *all = exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    int lane = running % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            unsigned left = all[row * 4 + k % 8 / 2].a[i / 2 + k / 8 * 2], right = all[column * 4 + k % 8 / 2].b[k / 8];
            sums[i] += half_as_float(left >> k % 2 * 16) * half_as_float(right >> k % 2 * 16);
        }
    }
}

// mma.m16n8k32 of int8: four elements to a word.
static inline void multiply_add(int (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    const Operands *all = exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    int lane = running % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 32; k++) {
            unsigned left = all[row * 4 + k % 16 / 4].a[i / 2 + k / 16 * 2], right = all[column * 4 + k % 16 / 4].b[k / 16];
            sums[i] += (signed char)(left >> k % 4 * 8) * (signed char)(right >> k % 4 * 8);
        }
    }
}

template <class... A, size_t... I>
static void launch(void (*kernel)(A...), int blocks, int size, void **given, std::index_sequence<I...>)
{
    std::tuple<A...> arguments(*(A *)given[I]...);
    body = [&] { std::apply(kernel, arguments); };
    blockDim = {size, 1, 1};
    gridDim = {blocks, 1, 1};
    threads.resize(size);
    stacks.resize(size * STACK);
    for (int block = 0; block < blocks; block++) {
        blockIdx = {block, 0, 0};
        run_block();
    }
}

template <class... A>
static void launch(void (*kernel)(A...), int blocks, int size, void **given)
{
    launch(kernel, blocks, size, given, std::index_sequence_for<A...>());
}

#define EXPORT(name) \
    extern "C" void launch_##name(int blocks, int size, void **given) { launch(name, blocks, size, given); }
