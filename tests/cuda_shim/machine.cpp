// A GPU in software that is strict: see ptx.cuh. The threads of a block are fibers on one thread of the CPU, in an
// order that a seed decides, and blocks run one after another.
#include "ptx.cuh"

#include <cxxabi.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fiber.hpp"
#include "watch.hpp"

Place threadIdx, blockIdx, blockDim, gridDim;

namespace {

using machine::Meeting;
using machine::Site;

constexpr int MOST_THREADS = 1024;
constexpr int64_t MOST_SHARED = 227 << 10;
constexpr int64_t STACK = 256 << 10;
constexpr unsigned char POISON = 0xFF;  // not a number in every type
constexpr unsigned char CANARY = 0xA5;

const char* const NAMES[] = {"__syncwarp", "a shuffle", "a ballot", "load_matrices", "load_matrices_turned",
                             "multiply_add<BFloat16>", "multiply_add<Float16>"};

struct Copy {
    unsigned char* to;
    unsigned char bytes[16];
    int64_t group;
};

enum State { READY, AT_BARRIER, IN_WARP, ENDED };

struct Thread {
    Fiber fiber;
    State state;
    Site site;        // where it waits
    Meeting what;     // and for what, in a warp
    int64_t group;    // of the copies that come next
    std::vector<Copy> copies;
};

// Lanes of a warp that wait for each other.
struct Meet {
    Meeting what;
    uint32_t mask, arrived;
    Site site;
};

struct Warp {
    std::vector<Meet> meets;
    void* given[32];
};

// Memory of the caller's. Kernels may touch what is registered and nothing else, once anything is.
struct Array {
    std::string name;
    const unsigned char* begin;
    int64_t bytes, element;
    bool writable;
    std::vector<Watch::Cell> cells;  // of each element
};

struct Machine {
    std::mutex one_at_a_time;
    char error[512];
    uint64_t seed = 0, random = 1;

    void (*body)(const void*);
    const void* given;
    int64_t blocks, threads, shared_bytes, done;

    Fiber outside;
    unsigned char* stacks = nullptr;
    // A page that must not be touched, MOST_SHARED in whole pages, and another such page.
    unsigned char* room = nullptr;
    int64_t room_bytes;
    unsigned char *open, *shared;  // the first byte that can be read, and the first of the block's own
    Thread thread[MOST_THREADS];
    Warp warp[MOST_THREADS / 32];
    int now;      // the thread that runs
    int waiting;  // threads at the barrier
    sigjmp_buf way_out;
    const void* accessed_from;  // the instruction
    bool failed, inside;  // whether a thread of a kernel runs

    Watch watch;
    std::vector<Watch::Word> words;  // of shared memory
    std::vector<Watch::Cell> bytes;
    std::vector<Array> arrays;
    const unsigned char* callers_stack;
    struct sigaction before[2];
};

Machine m;

int64_t page() {
    static const int64_t size = sysconf(_SC_PAGESIZE);
    return size;
}

uint32_t draw(uint32_t below) {
    m.random ^= m.random << 13;
    m.random ^= m.random >> 7;
    m.random ^= m.random << 17;
    return static_cast<uint32_t>(((m.random >> 32) * below) >> 32);
}

template <class T>
void shuffle(T* items, int64_t size) {
    for (int64_t i = size - 1; i > 0; --i) std::swap(items[i], items[draw(static_cast<uint32_t>(i + 1))]);
}

const char* base(const char* file) {
    const char* slash = std::strrchr(file, '/');
    return slash ? slash + 1 : file;
}

void leave_thread(bool for_good = false) { m.thread[m.now].fiber.switch_to(m.outside, for_good); }

void start_thread() {
    Fiber::arrived(m.outside);
    m.body(m.given);
    Thread& thread = m.thread[m.now];
    if (!thread.copies.empty()) {
        machine::fail({"its end", 0}, "%zu copies that it never waited for", thread.copies.size());
    }
    thread.state = ENDED;
    leave_thread(true);
}

// What is said of a block in which nobody can go on.
[[noreturn]] void stuck() {
    int64_t ended = -1, at_barrier = -1, in_warp = -1;
    for (int64_t i = m.threads - 1; i >= 0; --i) {
        (m.thread[i].state == ENDED ? ended : m.thread[i].state == AT_BARRIER ? at_barrier : in_warp) = i;
    }
    if (in_warp >= 0) {
        const Thread& waits = m.thread[in_warp];
        for (const Meet& meet : m.warp[in_warp / 32].meets) {
            if (!(meet.arrived >> in_warp % 32 & 1)) continue;
            const int missing = __builtin_ctz(meet.mask & ~meet.arrived);
            const int64_t other = in_warp / 32 * 32 + missing;
            m.now = static_cast<int>(in_warp);
            if (other >= m.threads || m.thread[other].state == ENDED) {
                machine::fail(waits.site, "waits at %s for lane %d, which has %s", NAMES[meet.what], missing,
                              other >= m.threads ? "no thread" : "ended");
            }
            machine::fail(waits.site, "waits at %s for lane %d, which waits at %s (%s:%d)", NAMES[meet.what], missing,
                          m.thread[other].state == AT_BARRIER ? "__syncthreads" : NAMES[m.thread[other].what],
                          base(m.thread[other].site.file), m.thread[other].site.line);
        }
    }
    m.now = static_cast<int>(at_barrier);
    machine::fail(m.thread[at_barrier].site, "waits at __syncthreads for thread %lld, which has ended",
                  static_cast<long long>(ended));
}

// Lets a warp's threads run, each until it must wait, as long as any can, but no more than so many times.
bool run_warp(int64_t w, int64_t times) {
    int order[32], size = 0;
    for (int64_t i = w * 32; i < std::min(m.threads, (w + 1) * 32); ++i) order[size++] = static_cast<int>(i);
    bool ran = false;
    for (int64_t time = 0; time < times; ++time) {
        shuffle(order, size);
        bool any = false;
        for (int i = 0; i < size; ++i) {
            if (m.thread[order[i]].state != READY) continue;
            m.now = order[i];
            threadIdx.x = static_cast<unsigned>(m.now);
            m.inside = true;
            m.outside.switch_to(m.thread[m.now].fiber);
            m.inside = false;
            any = true;
        }
        if (!any) break;
        ran = true;
    }
    return ran;
}

void check_canaries() {
    const auto check = [](const unsigned char* from, const unsigned char* to) {
        for (const unsigned char* at = from; at < to; ++at) {
            if (*at == CANARY) continue;
            machine::fail({"or another before it", 0}, "wrote to shared memory at byte %lld of %lld",
                          static_cast<long long>(at - m.shared), static_cast<long long>(m.shared_bytes));
        }
    };
    check(m.open, m.shared);
    check(m.shared + m.shared_bytes, m.room + page() + m.room_bytes);
}

void run_block() {
    std::memset(m.shared, POISON, static_cast<size_t>(m.shared_bytes));
    const int64_t warps = (m.threads + 31) / 32;
    for (int64_t w = 0; w < warps; ++w) m.warp[w].meets.clear();
    for (int64_t i = 0; i < m.threads; ++i) {
        Thread& thread = m.thread[i];
        thread.state = READY;
        thread.group = 0;
        thread.copies.clear();
        // Not all at one place of a page: they would share a few lines of the first cache.
        thread.fiber.prepare(m.stacks + i * (STACK + page()) + page(), STACK - i % 13 * 5 * 64, start_thread);
    }
    m.waiting = 0;
    m.watch.start_block(static_cast<int>(warps));
    int order[MOST_THREADS / 32];
    for (int64_t w = 0; w < warps; ++w) order[w] = static_cast<int>(w);
    for (;;) {
        shuffle(order, warps);
        bool ran = false;
        for (int64_t w = 0; w < warps; ++w) ran |= run_warp(order[w], int64_t{1} << draw(8));
        if (ran) continue;
        for (int64_t i = 0; i < m.threads; ++i) {
            if (m.thread[i].state != ENDED) stuck();
        }
        return check_canaries();
    }
}

// Blocks in this order; comes back early where one fails.
void run_blocks(const int32_t* order) {
    if (sigsetjmp(m.way_out, 1) != 0) return;
    for (m.done = 0; m.done < m.blocks; ++m.done) {
        blockIdx = {static_cast<unsigned>(order[m.done]), 0, 0};
        run_block();
    }
}

void on_fault(int signal, siginfo_t* info, void*) {
    const auto* at = static_cast<const unsigned char*>(info->si_addr);
    if (at >= m.room && at < m.room + 2 * page() + m.room_bytes) {
        machine::fail({"a kernel", 0}, "touches shared memory at byte %lld of %lld",
                      static_cast<long long>(at - m.shared), static_cast<long long>(m.shared_bytes));
    }
    if (at >= m.stacks && at < m.stacks + MOST_THREADS * (STACK + page())) {
        machine::fail({"a kernel", 0}, "has no stack left");
    }
    // Not ours: whoever was there before sees it again.
    sigaction(signal, &m.before[signal == SIGBUS], nullptr);
}

void* reserve(int64_t bytes, int protection) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* at = mmap(nullptr, static_cast<size_t>(bytes), protection, flags, -1, 0);
    if (at == MAP_FAILED) {
        std::perror("cuda_shim");
        std::abort();
    }
    return at;
}

void prepare_memory() {
    if (!m.stacks) {
        m.stacks = static_cast<unsigned char*>(reserve(MOST_THREADS * (STACK + page()), PROT_READ | PROT_WRITE));
        for (int64_t i = 0; i < MOST_THREADS; ++i) {
            mprotect(m.stacks + i * (STACK + page()), static_cast<size_t>(page()), PROT_NONE);
        }
        m.room_bytes = (MOST_SHARED + page() - 1) / page() * page();
        m.room = static_cast<unsigned char*>(reserve(m.room_bytes + 2 * page(), PROT_NONE));
    }
    // The block's memory ends where the room ends, but for what aligns it to 16.
    const int64_t bytes = (m.shared_bytes + 15) / 16 * 16;
    const int64_t whole = (bytes + page() - 1) / page() * page();
    unsigned char* end = m.room + page() + m.room_bytes;
    mprotect(m.room, static_cast<size_t>(m.room_bytes + page()), PROT_NONE);
    m.open = end - whole;
    mprotect(m.open, static_cast<size_t>(whole), PROT_READ | PROT_WRITE);
    std::memset(m.open, CANARY, static_cast<size_t>(whole));
    m.shared = end - bytes;
    if (m.bytes.size() < static_cast<size_t>(bytes)) {
        m.bytes.resize(static_cast<size_t>(bytes));
        m.words.resize(static_cast<size_t>(bytes / 4));
    }
}

// What the running thread, or the whole warp, does to memory.
void touch(const void* to, int64_t bytes, uint32_t lanes, Watch::What what, Site site) {
    const char* const does = what == Watch::READ ? "reads" : what == Watch::WRITE ? "writes" : "adds to";
    const auto* at = static_cast<const unsigned char*>(to);
    const int warp = m.now / 32;
    const auto report = [&](Watch::Fault fault, const char* memory, int64_t offset) {
        if (fault == Watch::NONE) return;
        machine::fail(site, "%s %lld bytes at byte %lld of %s, %s", does, static_cast<long long>(bytes),
                      static_cast<long long>(offset), memory,
                      fault == Watch::COPYING       ? "to which a copy is under way"
                      : fault == Watch::AFTER_WRITE ? "which another thread has written, with no barrier between"
                                                    : "which another thread has read, with no barrier between");
    };
    if (at >= m.room && at < m.room + m.room_bytes + 2 * page()) {
        const int64_t offset = at - m.shared;
        if (offset < 0 || offset + bytes > m.shared_bytes) {
            machine::fail(site, "%s %lld bytes at byte %lld of %lld of shared memory", does,
                          static_cast<long long>(bytes), static_cast<long long>(offset),
                          static_cast<long long>(m.shared_bytes));
        }
        return report(m.watch.touch_bytes(m.words.data(), m.bytes.data(), offset, bytes, warp, lanes, what),
                      "shared memory", offset);
    }
    if (m.arrays.empty()) return;
    for (Array& array : m.arrays) {
        const int64_t offset = at - array.begin;
        if (offset < 0 || offset >= array.bytes) continue;
        const char* const name = array.name.c_str();
        if (offset + bytes > array.bytes || (what != Watch::READ && !array.writable)) {
            machine::fail(site, "%s %lld bytes at byte %lld of %s, which has %lld%s", does,
                          static_cast<long long>(bytes), static_cast<long long>(offset), name,
                          static_cast<long long>(array.bytes),
                          array.writable ? "" : " that must not be written");
        }
        const int64_t first = offset / array.element, last = (offset + bytes - 1) / array.element;
        Watch::Cell* cells = &array.cells[static_cast<size_t>(first)];
        return report(m.watch.touch(cells, last - first + 1, warp, lanes, what, true), name, offset);
    }
    const auto is_in = [&](const void* begin, int64_t size) {
        return at >= static_cast<const unsigned char*>(begin) && at < static_cast<const unsigned char*>(begin) + size;
    };
    for (const Place& place : {std::cref(threadIdx), std::cref(blockIdx), std::cref(blockDim), std::cref(gridDim)}) {
        if (what == Watch::READ && is_in(&place, sizeof place)) return;
    }
    // The arguments of the kernel.
    if (what == Watch::READ && is_in(m.callers_stack, 64 << 10)) return;
    const Array* before = nullptr;
    for (const Array& array : m.arrays) {
        if (array.begin <= at && (!before || array.begin > before->begin)) before = &array;
    }
    machine::fail(site, "%s %lld bytes that are of no array, %lld bytes beyond %s", does, static_cast<long long>(bytes),
                  before ? static_cast<long long>(at - before->begin - before->bytes) : 0ll,
                  before ? before->name.c_str() : "all");
}

void touch(const void* at, int64_t bytes, Watch::What what, Site site) {
    touch(at, bytes, 1u << m.now % 32, what, site);
}

}  // namespace

// The name of the function of an instruction.
static std::string function_at(const void* address) {
    Dl_info info;
    if (!dladdr(address, &info) || !info.dli_sname) return "a kernel";
    char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
    const std::string name = plain ? plain : info.dli_sname;
    std::free(plain);
    return name;
}

namespace machine {

void fail(Site site, const char* format, ...) {
    char what[384];
    va_list rest;
    va_start(rest, format);
    std::vsnprintf(what, sizeof what, format, rest);
    va_end(rest);
    std::snprintf(m.error, sizeof m.error, "block %u, thread %d, ", blockIdx.x, m.now);
    const size_t said = std::strlen(m.error);
    if (site.file && site.line == 0) {
        std::snprintf(m.error + said, sizeof m.error - said, "%s: %s", site.file, what);
    } else if (site.file) {
        std::snprintf(m.error + said, sizeof m.error - said, "%s:%d: %s", base(site.file), site.line, what);
    } else {
        const std::string function = function_at(m.accessed_from);
        std::snprintf(m.error + said, sizeof m.error - said, "%.100s: %s", function.c_str(), what);
    }
    m.failed = true;
    m.inside = false;
    siglongjmp(m.way_out, 1);
}

int run(void (*body)(const void*), const void* given, int64_t blocks, int64_t threads, int64_t shared_bytes) {
    if (blocks == 0) return cudaSuccess;
    std::snprintf(m.error, sizeof m.error, "%lld blocks of %lld threads with %lld bytes of shared memory",
                  static_cast<long long>(blocks), static_cast<long long>(threads),
                  static_cast<long long>(shared_bytes));
    if (blocks < 0 || blocks > INT32_MAX || threads < 1 || threads > MOST_THREADS) return cudaErrorInvalidConfiguration;
    if (shared_bytes < 0 || shared_bytes > MOST_SHARED) return cudaErrorInvalidValue;
    m.error[0] = '\0';

    const std::lock_guard<std::mutex> alone(m.one_at_a_time);
    m.body = body, m.given = given, m.blocks = blocks, m.threads = threads, m.shared_bytes = shared_bytes;
    m.random = (m.seed + 1) * 0x9E3779B97F4A7C15u | 1;
    prepare_memory();
    gridDim = {static_cast<unsigned>(blocks), 1, 1};
    blockDim = {static_cast<unsigned>(threads), 1, 1};
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    for (int64_t i = 0; i < blocks; ++i) order[static_cast<size_t>(i)] = static_cast<int32_t>(i);
    shuffle(order.data(), blocks);

    static std::vector<unsigned char> handlers_stack(64 << 10);
    stack_t mine = {}, theirs = {};
    mine.ss_sp = handlers_stack.data();
    mine.ss_size = handlers_stack.size();
    sigaltstack(&mine, &theirs);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &m.before[0]);
    sigaction(SIGBUS, &action, &m.before[1]);
    m.failed = false;
    m.callers_stack = static_cast<const unsigned char*>(__builtin_frame_address(0));
    m.watch.start_launch();
    run_blocks(order.data());
    sigaction(SIGSEGV, &m.before[0], nullptr);
    sigaction(SIGBUS, &m.before[1], nullptr);
    sigaltstack(&theirs, nullptr);
    // The threads of a block that failed are gone, and so are their copies.
    if (m.failed) m.words.clear(), m.bytes.clear();
    return m.failed ? cudaErrorLaunchFailure : cudaSuccess;
}

unsigned char* shared() { return m.shared; }

void barrier(Site site) {
    Thread& mine = m.thread[m.now];
    mine.site = site;
    for (int64_t i = 0; i < m.threads && m.waiting > 0; ++i) {
        const Thread& other = m.thread[i];
        if (other.state != AT_BARRIER) continue;
        if (other.site.line != site.line || std::strcmp(other.site.file, site.file) != 0) {
            fail(site, "is at a __syncthreads while thread %lld waits at another (%s:%d)", static_cast<long long>(i),
                 base(other.site.file), other.site.line);
        }
        break;
    }
    mine.state = AT_BARRIER;
    if (++m.waiting == m.threads) {
        m.waiting = 0;
        m.watch.barrier();
        for (int64_t i = 0; i < m.threads; ++i) m.thread[i].state = READY;
    }
    // Even the last one may be overtaken.
    leave_thread();
}

static void exchange(Warp& warp, uint32_t mask) {
    uint64_t values[32] = {};
    for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) values[i] = static_cast<Shuffle*>(warp.given[i])->value;
    }
    for (int i = 0; i < 32; ++i) {
        if (!(mask >> i & 1)) continue;
        auto* shuffle = static_cast<Shuffle*>(warp.given[i]);
        if (shuffle->lane < 0 || shuffle->lane > 31 || !(mask >> shuffle->lane & 1)) {
            m.now = m.now / 32 * 32 + i;
            fail(shuffle->site, "wants a value of lane %d, which takes no part", shuffle->lane);
        }
        shuffle->value = values[shuffle->lane];
    }
}

static void count_votes(Warp& warp, uint32_t mask) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) votes |= static_cast<uint32_t>(static_cast<Ballot*>(warp.given[i])->vote) << i;
    }
    for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) static_cast<Ballot*>(warp.given[i])->votes = votes;
    }
}

static void check_shared(const void* at, int64_t bytes, const char* what, Site site) {
    const auto offset = static_cast<const unsigned char*>(at) - m.shared;
    if (offset < 0 || offset + bytes > m.shared_bytes) {
        fail(site, "%s at byte %lld of %lld bytes of shared memory", what, static_cast<long long>(offset),
             static_cast<long long>(m.shared_bytes));
    }
    if (offset % bytes != 0) fail(site, "%s at byte %lld, which is not aligned", what, static_cast<long long>(offset));
}

static void load(Warp& warp, bool turned) {
    uint16_t numbers[4][8][8];
    for (int i = 0; i < 32; ++i) {
        const auto* given = static_cast<Load*>(warp.given[i]);
        const int now = m.now;
        m.now = now / 32 * 32 + i;
        check_shared(given->row, 16, "loads a row of a matrix", given->site);
        // All lanes of the warp receive numbers of it.
        touch(given->row, 16, 0xFFFFFFFF, Watch::READ, given->site);
        m.now = now;
        std::memcpy(numbers[i / 8][i % 8], given->row, 16);
    }
    for (int i = 0; i < 32; ++i) {
        uint32_t* to = static_cast<Load*>(warp.given[i])->to;
        const int g = i / 4, t = 2 * (i % 4);
        for (int j = 0; j < 4; ++j) {
            const auto& from = numbers[j];
            const uint16_t low = turned ? from[t][g] : from[g][t], high = turned ? from[t + 1][g] : from[g][t + 1];
            to[j] = low | static_cast<uint32_t>(high) << 16;
        }
    }
}

static float widened_bits(uint32_t bits, bool bfloat16) {
    return bfloat16 ? __uint_as_float(bits << 16) : from_float16(static_cast<uint16_t>(bits));
}

static void multiply(Warp& warp, bool bfloat16) {
    float a[16][16], b[16][8];
    for (int i = 0; i < 32; ++i) {
        const auto* given = static_cast<Multiply*>(warp.given[i]);
        const int g = i / 4, t = 2 * (i % 4);
        for (int half = 0; half < 2; ++half) {
            for (int j = 0; j < 4; ++j) {
                a[g + 8 * (j % 2)][t + 8 * (j / 2) + half] = widened_bits(given->a[j] >> 16 * half & 0xFFFF, bfloat16);
            }
            for (int j = 0; j < 2; ++j) {
                b[t + 8 * j + half][g] = widened_bits(given->b[j] >> 16 * half & 0xFFFF, bfloat16);
            }
        }
    }
    for (int i = 0; i < 32; ++i) {
        float* sum = static_cast<Multiply*>(warp.given[i])->sum;
        for (int j = 0; j < 4; ++j) {
            const int row = i / 4 + 8 * (j / 2), column = 2 * (i % 4) + j % 2;
            for (int s = 0; s < 16; ++s) sum[j] += a[row][s] * b[s][column];
        }
    }
}

void meet(Meeting what, uint32_t mask, void* given, Site site) {
    Warp& warp = m.warp[m.now / 32];
    const uint32_t self = 1u << m.now % 32;
    if (!(mask & self)) fail(site, "is at %s with the mask %08x, in which it is not", NAMES[what], mask);
    warp.given[m.now % 32] = given;
    size_t place = warp.meets.size();
    for (size_t i = 0; i < warp.meets.size(); ++i) {
        const Meet& other = warp.meets[i];
        if (!(other.mask & mask)) continue;
        const bool here = what < LOAD || (other.site.line == site.line && std::strcmp(other.site.file, site.file) == 0);
        if (other.what != what || other.mask != mask || !here) {
            fail(site, "is at %s with the mask %08x while lane %d waits at %s with the mask %08x (%s:%d)", NAMES[what],
                 mask, __builtin_ctz(other.arrived), NAMES[other.what], other.mask, base(other.site.file),
                 other.site.line);
        }
        place = i;
    }
    if (place == warp.meets.size()) warp.meets.push_back({what, mask, 0, site});
    Thread& mine = m.thread[m.now];
    mine.state = IN_WARP, mine.site = site, mine.what = what;
    if ((warp.meets[place].arrived |= self) != mask) return leave_thread();
    if (what == SYNC) m.watch.sync(m.now / 32, mask);
    if (what == SHUFFLE) exchange(warp, mask);
    if (what == BALLOT) count_votes(warp, mask);
    if (what == LOAD || what == LOAD_TURNED) load(warp, what == LOAD_TURNED);
    if (what == MULTIPLY_BFLOAT16 || what == MULTIPLY_FLOAT16) multiply(warp, what == MULTIPLY_BFLOAT16);
    for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) m.thread[m.now / 32 * 32 + i].state = READY;
    }
    warp.meets.erase(warp.meets.begin() + static_cast<std::ptrdiff_t>(place));
    leave_thread();
}

static void set_copying(void* to, bool copying) {
    Watch::set_copying(&m.words[static_cast<size_t>((static_cast<unsigned char*>(to) - m.shared) / 4)], 4, copying);
}

void copy(void* to, const void* from, bool real, Site site) {
    check_shared(to, 16, "copies to", site);
    if (reinterpret_cast<uintptr_t>(from) % 16 && real) fail(site, "copies from an address that is not aligned to 16");
    if (real) touch(from, 16, Watch::READ, site);
    touch(to, 16, Watch::WRITE, site);
    Thread& mine = m.thread[m.now];
    mine.copies.push_back({static_cast<unsigned char*>(to), {}, mine.group});
    if (real) std::memcpy(mine.copies.back().bytes, from, 16);
    // Neither the old bytes nor the new ones are to be relied on until it has waited.
    std::memset(to, POISON, 16);
    set_copying(to, true);
}

void commit() { ++m.thread[m.now].group; }

void wait(int pending, Site site) {
    Thread& mine = m.thread[m.now];
    size_t kept = 0;
    for (const Copy& copy : mine.copies) {
        if (copy.group >= mine.group - pending) {
            mine.copies[kept++] = copy;
            continue;
        }
        set_copying(copy.to, false);
        touch(copy.to, 16, Watch::WRITE, site);
        std::memcpy(copy.to, copy.bytes, 16);
    }
    mine.copies.resize(kept);
}

int add(int* to, int more, Site site) {
    check_shared(to, 4, "adds to a number", site);
    touch(to, 4, Watch::ADD, site);
    const int before = *to;
    *to = static_cast<int>(static_cast<unsigned>(before) + static_cast<unsigned>(more));
    return before;
}

uint16_t to_bfloat16(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

uint16_t to_float16(float x) {
    const uint32_t bits = __float_as_uint(x), size = bits & 0x7FFFFFFF, sign = bits >> 16 & 0x8000;
    if (size > 0x7F800000) return 0x7FFF;
    // 65520, from where on infinity is nearest, or even.
    if (size >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
    // Below 2^-14 numbers are multiples of 2^-24, as is 1/2's last place.
    if (size < 0x38800000) {
        const float shifted = __uint_as_float(size) + 0.5f;
        return static_cast<uint16_t>(sign | (__float_as_uint(shifted) - __float_as_uint(0.5f)));
    }
    return static_cast<uint16_t>(sign | ((size + 0xFFF + (size >> 13 & 1) - (112u << 23)) >> 13));
}

float from_float16(uint16_t x) {
    const uint32_t sign = (x & 0x8000u) << 16, exponent = x >> 10 & 31, fraction = x & 1023u;
    if (exponent == 31) return __uint_as_float(sign | 0x7F800000 | (fraction ? 0x400000 : 0) | fraction << 13);
    if (exponent == 0) {
        return std::copysign(static_cast<float>(fraction) * 0x1p-24f, __uint_as_float(sign | 0x3F800000));
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace machine

extern "C" {
void cuda_shim_seed(uint64_t seed) { m.seed = seed; }
const char* cuda_shim_error() { return m.error; }
void cuda_shim_array(const char* name, const void* begin, int64_t bytes, int64_t element, int writable) {
    m.arrays.push_back({name, static_cast<const unsigned char*>(begin), bytes, element, writable != 0, {}});
    m.arrays.back().cells.resize(static_cast<size_t>((bytes + element - 1) / element));
}
void cuda_shim_forget_arrays() { m.arrays.clear(); }

// What a compiler calls with -fsanitize=thread, before every access to memory that others might see. Nothing of its own
// runtime is used, so that the library loads into any program.
static void accessed(const void* at, int64_t bytes, Watch::What what, void* from) {
    if (!m.inside || m.thread[m.now].fiber.holds(at)) return;
    m.accessed_from = from;
    touch(at, bytes, what, {nullptr, 0});
}
#define ACCESSES(BYTES)                                                                                              \
    void __tsan_read##BYTES(void* at) { accessed(at, BYTES, Watch::READ, __builtin_return_address(0)); }             \
    void __tsan_write##BYTES(void* at) { accessed(at, BYTES, Watch::WRITE, __builtin_return_address(0)); }           \
    void __tsan_unaligned_read##BYTES(void* at) { accessed(at, BYTES, Watch::READ, __builtin_return_address(0)); }   \
    void __tsan_unaligned_write##BYTES(void* at) { accessed(at, BYTES, Watch::WRITE, __builtin_return_address(0)); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* at, size_t bytes) {
    accessed(at, static_cast<int64_t>(bytes), Watch::READ, __builtin_return_address(0));
}
void __tsan_write_range(void* at, size_t bytes) {
    accessed(at, static_cast<int64_t>(bytes), Watch::WRITE, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    accessed(from, static_cast<int64_t>(bytes), Watch::READ, __builtin_return_address(0));
    accessed(to, static_cast<int64_t>(bytes), Watch::WRITE, __builtin_return_address(0));
    return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int byte, size_t bytes) {
    accessed(to, static_cast<int64_t>(bytes), Watch::WRITE, __builtin_return_address(0));
    return std::memset(to, byte, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// And with -fsanitize=alignment, bounds and so on, where it finds that something is not defined. What it knows of it
// starts with the place.
static void undefined(const Site* place, const char* what) {
    if (m.inside) machine::fail(*place, "%s", what);
    std::fprintf(stderr, "%s:%d: %s\n", place->file, place->line, what);
    std::abort();
}
// Some take one value more, or none; compilers that stop at the first call another name.
#define UNDEFINED(NAME, WHAT)                                                                     \
    void __ubsan_handle_##NAME(const Site* place, void*, void*) { undefined(place, WHAT); }         \
    void __ubsan_handle_##NAME##_abort(const Site* place, void*, void*) { undefined(place, WHAT); }
UNDEFINED(type_mismatch_v1, "touches memory that is not aligned")
UNDEFINED(out_of_bounds, "goes beyond the bounds of an array")
UNDEFINED(shift_out_of_bounds, "shifts by too many bits")
UNDEFINED(add_overflow, "adds beyond the range of an integer")
UNDEFINED(sub_overflow, "subtracts beyond the range of an integer")
UNDEFINED(mul_overflow, "multiplies beyond the range of an integer")
UNDEFINED(negate_overflow, "negates the least integer")
UNDEFINED(divrem_overflow, "divides by zero")
}
