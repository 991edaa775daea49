// Runs a CUDA source's kernels on the CPU: blocks one after the other, the threads of a block as
// coroutines that take turns at __syncthreads(). It has what these kernels use and nothing else.
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
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

static inline int atomicAdd(int *place, int value) { int old = *place; *place += value; return old; }
static inline int atomicOr(int *place, int value) { int old = *place; *place |= value; return old; }
static inline int atomicMin(int *place, int value) { int old = *place; if (value < old) *place = value; return old; }
static inline long long __double_as_longlong(double value) { long long bits; memcpy(&bits, &value, 8); return bits; }
static inline float __int_as_float(int bits) { float value; memcpy(&value, &bits, 4); return value; }

struct Thread {
    ucontext_t context;
    bool done, waits;
};

static ucontext_t scheduler;
static std::vector<Thread> threads;
static std::vector<char> stacks;
static std::function<void()> body;
static int running;
static const size_t STACK = 32768;

static inline void __syncthreads()
{
    int me = running;
    threads[me].waits = true;
    swapcontext(&threads[me].context, &scheduler);
    threadIdx = {me, 0, 0};
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
    for (int t = 0; t < blockDim.x; t++) {
        Thread &thread = threads[t];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = &stacks[t * STACK];
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = &scheduler;
        thread.done = thread.waits = false;
        makecontext(&thread.context, run_thread, 0);
    }
    for (bool some = true; some;) {
        some = false;
        for (int t = 0; t < blockDim.x; t++) {
            if (threads[t].done)
                continue;
            running = t;
            threads[t].waits = false;
            swapcontext(&scheduler, &threads[t].context);
            some = some || !threads[t].done;
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
