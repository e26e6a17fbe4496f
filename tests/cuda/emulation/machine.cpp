// The machine of cuda_emulation.h: fibers, barriers, blocks and launches.
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <deque>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_emulation.h"

Index3 threadIdx, blockIdx, blockDim{1, 1, 1}, gridDim{1, 1, 1};

namespace emulation {

Device device;

unsigned occupancy(unsigned threads, size_t shared_bytes) {
  const size_t of_shared = (device.shared_per_block() + 1024) / (shared_bytes + 1024);
  return std::min({device.blocks_at_once, Device::kThreads / threads, static_cast<unsigned>(of_shared)});
}

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kKeptFibers = 4096;  // from launch to launch
constexpr size_t kStackBytes = 256 * 1024;

struct Launch {
  Shape shape;
  std::function<void()> body;
};

struct Fiber {
  enum { kNew, kReady, kWaiting, kLeft } state = kLeft;
  bool arrived = false;    // at a barrier of the cluster that it has yet to wait for
  bool has_stack = false;  // and waits on it, when it has left, for the next kernel
  ucontext_t context;
  void* jump[5];
  // While waiting: where, for whom, what it brings, and from which fiber it takes
  const char* file;
  int line;
  Scope scope;
  unsigned mask;
  uint64_t given, taken;
  unsigned source;
};

// The stacks of a block's fibers. Not from the heap: 96 blocks have 25 GB of them, a page or two of each in use, and a
// process whose heap is larger than the memory cannot fork.
class Stacks {
 public:
  Stacks() {
    if (begin_ == MAP_FAILED) throw std::bad_alloc();
  }
  Stacks(const Stacks&) = delete;
  ~Stacks() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(begin_, kBytes);  // what it knows of these frames is not of who has the place next
#endif
    munmap(begin_, kBytes);
  }
  char* operator[](unsigned i) const { return static_cast<char*>(begin_) + i * kStackBytes; }

 private:
  static constexpr size_t kBytes = kMaxThreads * kStackBytes;
  void* const begin_ =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
};

// Behind the dynamic shared memory of a block, so that a write beyond its end is reported and harms nobody. The address
// sanitizer has a zone of its own.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kRedZone = 0;
#else
constexpr size_t kRedZone = 1024;
#endif

struct Block {
  std::vector<unsigned char> dynamic_shared;  // and the red zone
  std::vector<char> static_shared;
};

struct Machine {
  std::deque<Fiber> fibers;  // the first `count` are the threads of the gang, block after block
  unsigned count = 0;
  std::vector<Block> blocks;
  std::deque<Stacks> stacks;
  void* jump[5];
  unsigned threads = 0, first_block = 0, current = 0;  // of a block; of the gang; the fiber that runs
  Launch running;
  std::vector<Launch> coming;  // in their order: all but the first follow the one before
  unsigned seed = 0, launches = 0;
  std::mt19937 random;
  std::string failure;
};
static Machine machine;

void reset(unsigned seed) {
  machine.failure.clear();
  machine.coming.clear();
  machine.launches = 0;
  machine.seed = seed, machine.random.seed(seed);
}
unsigned launches() { return machine.launches; }
bool failed() { return !machine.failure.empty(); }
unsigned current() { return machine.current; }
static unsigned block_of(unsigned fiber) { return fiber / machine.threads; }
void* dynamic_shared() { return machine.blocks[block_of(machine.current)].dynamic_shared.data(); }

void complain(const char* what) {
  if (machine.failure.empty()) machine.failure = what;
}

static void fail(const char* what, const Fiber& at) {
  if (!machine.failure.empty()) return;
  unsigned fiber = 0;
  while (&machine.fibers[fiber] != &at) ++fiber;
  char text[512];
  std::snprintf(text, sizeof(text), "%s (block %u, thread %u, %s:%d, mask %08x)", what,
                machine.first_block + block_of(fiber), fiber % machine.threads, at.file ? at.file : "", at.line,
                at.mask);
  machine.failure = text;
}

// 0 .. count - 1 in the order of the seed
template <class Numbers>
static Numbers& arrange(Numbers& numbers, unsigned count) {
  const auto end = numbers.begin() + count;
  std::iota(numbers.begin(), end, 0u);
  if (machine.seed == 1) std::reverse(numbers.begin(), end);
  if (machine.seed > 1) std::shuffle(numbers.begin(), end, machine.random);
  return numbers;
}

// --- Switching between the scheduler and a fiber. Not by swapcontext: that is two calls to the system. The address
// sanitizer would make another before each jump, to forget the frames that are left: no frame is left here.
#define HRRL_JUMPS __attribute__((noinline, no_sanitize("address")))

static HRRL_JUMPS void leave_fiber() { __builtin_longjmp(machine.jump, 1); }
static HRRL_JUMPS void enter_fiber(Fiber& fiber) {
  if (fiber.state == Fiber::kNew) fiber.state = Fiber::kReady;
  if (!fiber.has_stack) {
    fiber.has_stack = true;
    setcontext(&fiber.context);
  }
  __builtin_longjmp(fiber.jump, 1);
}
static HRRL_JUMPS void wait_in_fiber(Fiber& self) {
  if (!__builtin_setjmp(self.jump)) leave_fiber();
}
static HRRL_JUMPS void resume(unsigned fiber) {
  machine.current = fiber;
  threadIdx.x = fiber % machine.threads;
  blockIdx.x = machine.first_block + block_of(fiber);
  if (!__builtin_setjmp(machine.jump)) enter_fiber(machine.fibers[fiber]);
}

static void thread_main() {
  for (;;) {
    machine.running.body();
    Fiber& self = machine.fibers[machine.current];
    self.state = Fiber::kLeft;
    wait_in_fiber(self);
  }
}

static void prepare(unsigned f) {
  Fiber& fiber = machine.fibers[f];
  if (!fiber.has_stack) {
    while (machine.stacks.size() <= f / kMaxThreads) machine.stacks.emplace_back();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = machine.stacks[f / kMaxThreads][f % kMaxThreads];
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, thread_main, 0);
  }
  fiber.state = Fiber::kNew;
  fiber.scope = Scope::kWarp;
  fiber.arrived = false;
}

// --- Barriers

uint64_t meet(const char* file, int line, Scope scope, unsigned mask, uint64_t given, unsigned source) {
  Fiber& self = machine.fibers[machine.current];
  self.state = Fiber::kWaiting;
  self.file = file, self.line = line, self.scope = scope, self.mask = mask, self.given = given, self.source = source;
  wait_in_fiber(self);
  return machine.fibers[machine.current].taken;
}

// Lets those that fiber `f` waits for go on if all of them have come.
static void release(unsigned f) {
  const Fiber& self = machine.fibers[f];
  if (self.state != Fiber::kWaiting) return;
  unsigned count = machine.count, first = 0;
  if (self.scope == Scope::kBlock) count = machine.threads;
  if (self.scope == Scope::kWarp) count = kWarpSize;
  if (self.scope != Scope::kGang) first = f / count * count;
  const unsigned mask = self.mask;
  const auto named = [&](unsigned i) { return self.scope != Scope::kWarp || (mask >> i & 1) != 0; };
  if (!named(f - first)) return fail("a lane calls a warp operation whose mask leaves it out", self);
  uint64_t all_given = 0;
  for (unsigned i = count; i-- > 0;) {
    if (!named(i)) continue;
    const Fiber& other = machine.fibers[first + i];
    if (other.state != Fiber::kWaiting || other.line != self.line || other.mask != mask || other.scope != self.scope ||
        (other.file != self.file && std::strcmp(other.file, self.file) != 0))
      return;
    all_given |= other.given;
  }
  for (unsigned i = 0; i < count; ++i) {
    if (!named(i)) continue;
    Fiber& other = machine.fibers[first + i];
    if (self.scope == Scope::kWarp && !named(other.source - first))
      return fail("a lane reads from a lane outside the mask", other);
    other.taken = self.scope == Scope::kWarp ? machine.fibers[other.source].given : all_given;
  }
  for (unsigned i = 0; i < count; ++i)
    if (named(i)) machine.fibers[first + i].state = Fiber::kReady;
}

void sync_cluster(const char* file, int line) { meet(file, line, Scope::kGang, 0, 0, machine.current); }
void arrive_at_cluster() {
  Fiber& self = machine.fibers[machine.current];
  if (self.arrived) fail("arrives twice at a barrier of the cluster", self);
  self.arrived = true;
}
void wait_for_cluster(const char* file, int line) {
  Fiber& self = machine.fibers[machine.current];
  if (!self.arrived) fail("waits for the cluster without having arrived", self);
  sync_cluster(file, line);
  machine.fibers[machine.current].arrived = false;
}
static bool waits_for_launch(const Fiber& f) { return f.state == Fiber::kWaiting && f.scope == Scope::kLaunch; }
void wait_for_launch_before(const char* file, int line) {
  if (!machine.coming.empty()) meet(file, line, Scope::kLaunch, 0, 0, machine.current);
}
void sync_grid(const char* file, int line) {
  if (machine.blocks.size() != gridDim.x)
    fail("a barrier of the grid in a launch that is not cooperative", machine.fibers[machine.current]);
  meet(file, line, Scope::kGang, 0, 0, machine.current);
}

const void* in_block(const void* own, unsigned rank) {
  const auto fiber = machine.fibers.begin() + machine.current;
  const auto offset = static_cast<const unsigned char*>(own) - static_cast<unsigned char*>(dynamic_shared());
  if (fiber->arrived) fail("reads the shared memory of a block that may leave", *fiber);
  if (rank >= machine.blocks.size()) return fail("the cluster has no such block", *fiber), own;
  auto& shared = machine.blocks[rank].dynamic_shared;
  if (offset < 0 || offset >= static_cast<ptrdiff_t>(shared.size() - kRedZone))
    return fail("only dynamic shared memory is seen by other blocks", *fiber), own;
  const auto first = machine.fibers.begin() + rank * machine.threads;
  const auto in = [&](auto state) {
    return std::all_of(first, first + machine.threads, [&](const Fiber& f) { return f.state == state; });
  };
  if (in(Fiber::kNew)) fail("reads the shared memory of a block that has not begun", *fiber);
  if (in(Fiber::kLeft)) fail("reads the shared memory of a block that has left", *fiber);
  return shared.data() + offset;
}

// --- Running

// Where the static __shared__ variables of this library are: its thread-local storage.
struct StaticShared {
  inline static thread_local char marker = 1;
  char* begin = nullptr;
  size_t bytes = 0;

  StaticShared() {
    marker = 1;  // the storage exists from its first use on
    dl_iterate_phdr(
        [](dl_phdr_info* library, size_t, void* result) {
          for (int i = 0; i < library->dlpi_phnum; ++i) {
            auto* data = static_cast<char*>(library->dlpi_tls_data);
            const size_t bytes = library->dlpi_phdr[i].p_memsz;
            if (library->dlpi_phdr[i].p_type != PT_TLS || !data || &marker < data || &marker >= data + bytes) continue;
            static_cast<StaticShared*>(result)->begin = data;
            static_cast<StaticShared*>(result)->bytes = bytes;
            return 1;
          }
          return 0;
        },
        this);
  }
};

static const StaticShared& statics() {
  static const StaticShared found;
  return found;
}

// Runs a warp until each of its lanes has left or waits for somebody else.
static bool run_warp(unsigned first) {
  std::array<unsigned, kWarpSize> lanes;
  bool ran = false;
  for (bool again = true; again && !failed();) {
    again = false;
    for (unsigned lane : arrange(lanes, kWarpSize)) {
      const unsigned f = first + lane;
      if (machine.fibers[f].state != Fiber::kReady && machine.fibers[f].state != Fiber::kNew) continue;
      ran = again = true;
      resume(f);
      if (machine.fibers[f].state == Fiber::kWaiting && machine.fibers[f].scope == Scope::kWarp) release(f);
    }
  }
  return ran;
}

// Runs a block until each of its threads has left or waits for other blocks.
static bool run_block(unsigned b) {
  auto& saved = machine.blocks[b].static_shared;
  const bool alone = machine.blocks.size() == 1;
  std::vector<unsigned> warps(machine.threads / kWarpSize);
  if (!alone && !saved.empty()) std::memcpy(statics().begin, saved.data(), saved.size());
  bool ran = false;
  for (bool again = true; again && !failed();) {
    again = false;
    for (unsigned warp : arrange(warps, machine.threads / kWarpSize))
      again |= run_warp(b * machine.threads + warp * kWarpSize);
    ran |= again;
    // The warps have nothing left to do before the next barrier of the block.
    if (machine.fibers[b * machine.threads].scope == Scope::kBlock) release(b * machine.threads);
  }
  if (!alone) saved.assign(statics().begin, statics().begin + statics().bytes);
  return ran;
}

static void run_coming();

// What was launched before is run while this gang waits, and leaves the machine as the gang has it.
static void run_launches_before() {
  const std::vector<char> of_block(statics().begin, statics().begin + statics().bytes);
  const Index3 grid = gridDim, block = blockDim;
  Machine waiting = std::exchange(machine, {});
  machine.seed = waiting.seed, machine.random = waiting.random;
  machine.coming.swap(waiting.coming);
  run_coming();
  waiting.random = machine.random, waiting.failure = machine.failure;
  machine = std::move(waiting);
  gridDim = grid, blockDim = block;
  std::memcpy(statics().begin, of_block.data(), of_block.size());
  for (unsigned f = 0; f < machine.count; ++f) {
    Fiber& fiber = machine.fibers[f];
    if (waits_for_launch(fiber)) fiber.state = Fiber::kReady;
  }
}

static void run_gang(unsigned blocks, size_t shared_bytes) {
  machine.count = blocks * machine.threads;
  while (machine.fibers.size() < machine.count) machine.fibers.emplace_back();
  machine.blocks.resize(blocks);
  for (Block& block : machine.blocks) {
    // A new array each time: the address sanitizer then knows its end. The bytes are NaN as doubles and as floats.
    block.dynamic_shared = std::vector<unsigned char>(shared_bytes + kRedZone, 0xff);
    block.static_shared.clear();
  }
  for (unsigned f = 0; f < machine.count; ++f) prepare(f);
  std::vector<unsigned> numbers(blocks);
  for (bool ran = true; ran && !failed();) {
    ran = false;
    for (unsigned b : arrange(numbers, blocks)) ran |= run_block(b);
    if (machine.fibers[0].scope == Scope::kGang) release(0);
    const auto end = machine.fibers.begin() + machine.count;
    if (std::any_of(machine.fibers.begin(), end, [](const Fiber& f) { return waits_for_launch(f); }))
      run_launches_before(), ran = true;
  }
  for (unsigned f = 0; f < machine.count; ++f) {
    Fiber& fiber = machine.fibers[f];
    if (fiber.state == Fiber::kLeft && fiber.arrived) fail("leaves without waiting for the cluster", fiber);
    if (fiber.state == Fiber::kWaiting)
      fail("a barrier or warp operation was not reached by all of its threads", fiber);
    if (fiber.state != Fiber::kLeft) fiber.has_stack = false;  // it never ends: the next one begins anew
  }
  for (const Block& block : machine.blocks)
    if (std::any_of(block.dynamic_shared.end() - kRedZone, block.dynamic_shared.end(),
                    [](auto b) { return b != 0xff; }))
      fail("a kernel wrote beyond its dynamic shared memory", machine.fibers[0]);
}

static void run(Launch launch) {
  const Shape shape = launch.shape;
  machine.threads = shape.block;
  machine.running = std::move(launch);
  gridDim.x = shape.grid, blockDim.x = shape.block;
  const unsigned gang = shape.cooperative ? shape.grid : shape.cluster;
  if (shape.grid == 0 || shape.block == 0 || shape.block > kMaxThreads || shape.block % kWarpSize != 0)
    machine.failure = "a launch needs blocks, of 32 to 1024 threads in whole warps";
  else if (shape.cluster == 0 || shape.grid % shape.cluster != 0 || (shape.cluster > 1 && !device.clusters))
    machine.failure = "the grid must be of whole clusters, on a device that has them";
  else if (shape.cooperative && (!device.cooperative || shape.grid > static_cast<unsigned>(device.multiprocessors) *
                                                                         occupancy(shape.block, shape.shared_bytes)))
    machine.failure = "a cooperative launch needs a device that has room for all of its blocks at once";
  if (failed()) return;
  std::vector<unsigned> gangs(shape.grid / gang);
  for (unsigned g : arrange(gangs, shape.grid / gang)) {
    machine.first_block = g * gang;
    run_gang(gang, shape.shared_bytes);
    if (failed()) break;
  }
  if (machine.fibers.size() > kKeptFibers) {
    machine.fibers.resize(kKeptFibers);
    machine.stacks.resize(kKeptFibers / kMaxThreads);
  }
}

static void run_coming() {
  while (!machine.coming.empty() && !failed()) {
    Launch last = std::move(machine.coming.back());
    machine.coming.pop_back();
    run(std::move(last));
    if (!machine.coming.empty() && !failed())
      machine.failure = "a launch that may begin before the end of the one before did not wait for it";
  }
}

void launch(const Shape& shape, std::function<void()> body) {
  if (!shape.follows) run_coming();
  if (failed()) return;
  ++machine.launches;
  machine.coming.push_back({shape, std::move(body)});
}

const char* failure() {
  run_coming();
  return failed() ? machine.failure.c_str() : nullptr;
}

}  // namespace emulation
