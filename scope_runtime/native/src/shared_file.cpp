#include "shared_file.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <utility>

namespace scope {
namespace {

constexpr uint32_t max_ring_events = 1u << 20;

[[noreturn]] void fail(const std::string & what) {
  throw std::runtime_error(what);
}

std::string why() {
  return std::strerror(errno);
}

struct File {
  int fd;
  ~File() {
    if (fd >= 0) ::close(fd);
  }
};

size_t file_bytes(uint64_t ring_bytes) {
  return sizeof(SharedHeader) + ring_bytes;
}

void check(const SharedHeader & h, uint64_t n_bytes) {
  if (std::memcmp(h.magic, "SCOPESHM", sizeof h.magic) != 0) fail("the control file is none, or not complete");
  if (h.version != SCOPE_SHARED_VERSION || h.abi_version != SCOPE_ABI_VERSION)
    fail("the control file is of another version of the hook");
  if (h.total_bytes != n_bytes || h.off_ring != sizeof(SharedHeader) || h.ring_bytes > n_bytes ||
      file_bytes(h.ring_bytes) != n_bytes)
    fail("the control file's sizes are not those of its parts");
  if (h.n_embd == 0 || h.n_embd > 1u << 20 || h.n_layer == 0 || h.n_layer > 1u << 14)
    fail("the control file is for a model of absurd shape");
}

}  // namespace

SharedFile::SharedFile(std::string folder, const char * lock) : folder_(std::move(folder)) {
  const std::string path = folder_ + "/" + lock;
  lock_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (lock_ < 0) fail("cannot open " + path + ": " + why());
  if (::flock(lock_, LOCK_EX | LOCK_NB) == 0) return;
  const std::string reason = errno == EWOULDBLOCK ? "another process holds it" : why();
  ::close(lock_);
  lock_ = -1;
  fail("cannot lock " + path + ": " + reason);
}

SharedFile::SharedFile(SharedFile && from) noexcept
    : folder_(std::move(from.folder_)),
      memory_(std::exchange(from.memory_, nullptr)),
      n_bytes_(from.n_bytes_),
      lock_(std::exchange(from.lock_, -1)) {}

SharedFile::~SharedFile() {
  if (memory_ != nullptr) ::munmap(memory_, n_bytes_);
  if (lock_ >= 0) ::close(lock_);
}

void SharedFile::map(int fd, size_t n_bytes) {
  void * memory = ::mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) fail("cannot map the control file: " + why());
  memory_ = memory;
  n_bytes_ = n_bytes;
}

SharedFile SharedFile::create(const std::string & folder, uint32_t n_embd, uint32_t n_layer, uint32_t ring_events) {
  if (ring_events > max_ring_events) fail("the event ring is too large");
  SharedFile out(folder, "controller.lock");
  const std::string path = folder + "/control";
  const File file{::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)};
  if (file.fd < 0) fail("cannot make " + path + ": " + why());
  const uint64_t ring_bytes = Ring::bytes_for(ring_events);
  const size_t n_bytes = file_bytes(ring_bytes);
  // Taken now: a full disk must be an error here, not a SIGBUS in somebody's server.
  if (const int error = ::posix_fallocate(file.fd, 0, static_cast<off_t>(n_bytes)); error != 0)
    fail("cannot make " + path + ": " + std::strerror(error));
  out.map(file.fd, n_bytes);
  SharedHeader & h = out.header();
  h.version = SCOPE_SHARED_VERSION;
  h.abi_version = SCOPE_ABI_VERSION;
  h.total_bytes = n_bytes;
  h.n_embd = n_embd;
  h.n_layer = n_layer;
  h.off_ring = sizeof(SharedHeader);
  h.ring_bytes = ring_bytes;
  Ring::format(reinterpret_cast<std::byte *>(&h) + h.off_ring, ring_bytes);
  std::memcpy(h.magic, "SCOPESHM", sizeof h.magic);
  try {
    check(h, n_bytes);
  } catch (...) {
    ::unlink(path.c_str());
    throw;
  }
  return out;
}

SharedFile SharedFile::open(const std::string & folder, const char * lock) {
  SharedFile out(folder, lock);
  const std::string path = folder + "/control";
  const File file{::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW)};
  if (file.fd < 0) fail("cannot open " + path + ": " + why());
  struct stat s{};
  if (::fstat(file.fd, &s) != 0) fail("cannot open " + path + ": " + why());
  if (!S_ISREG(s.st_mode) || s.st_uid != ::geteuid() || (s.st_mode & 077) != 0)
    fail(path + " is not a file of this user alone");
  const auto n_bytes = static_cast<uint64_t>(s.st_size);
  if (n_bytes < sizeof(SharedHeader) || n_bytes > uint64_t{1} << 32) fail("the control file is cut short");
  out.map(file.fd, n_bytes);
  check(out.header(), n_bytes);
  (void)out.ring();
  return out;
}

Ring SharedFile::ring() const {
  return Ring(reinterpret_cast<std::byte *>(memory_) + header().off_ring, header().ring_bytes);
}

bool is_locked(const std::string & path) {
  const File file{::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW)};
  if (file.fd < 0) return false;
  return ::flock(file.fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

// A futex is 32 bits wide: the counter's low half, which is where it changes.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

void wake(std::atomic<uint64_t> & counter) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t *>(&counter), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

void wait_change(const std::atomic<uint64_t> & counter, uint64_t seen, int32_t timeout_ms) {
  const timespec limit{timeout_ms / 1000, (timeout_ms % 1000) * 1000000L};
  ::syscall(SYS_futex, reinterpret_cast<const uint32_t *>(&counter), FUTEX_WAIT, static_cast<uint32_t>(seen), &limit,
            nullptr, 0);
}

}  // namespace scope
