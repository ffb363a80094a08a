// Preloaded into a process, this makes one of its file operations go wrong: the k-th that changes something below a folder.
//
// FAULTS_UNDER    the folder; without it nothing is done and nothing is counted
// FAULTS_COUNTER  a file of 8 bytes, the number of operations so far of all processes that have it in their environment
// FAULTS_AT       k, from 1; 0 attacks nothing and only counts
// FAULTS_DO       what happens at k (see `attack`)
// FAULTS_LOG      a file that gets a line for each operation: number, name, path
//
// Operations are counted where the dynamic linker sees them: those of Python, numpy, torch, protobuf and array_record are, what
// libc does for its own fprintf and what statically linked programs do is not.

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <string>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

template <typename Function> Function next(const char* name) { return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name)); }

const char* setting(const char* name) {
  const char* value = getenv(name);
  return value && *value ? value : nullptr;
}

std::string place_of(int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, sizeof path);
  return length > 0 ? std::string(path, length) : std::string();
}

std::string place_of(int folder, const char* path) {
  if (path[0] == '/') return path;
  char here[PATH_MAX];
  if (folder == AT_FDCWD) return std::string(getcwd(here, sizeof here) ? here : "") + "/" + path;
  return place_of(folder) + "/" + path;
}

bool counts(const std::string& path) {
  const char* under = setting("FAULTS_UNDER");
  return under && path.compare(0, strlen(under), under) == 0;
}

// The number of this operation, over all processes.
int64_t number() {
  const char* file = setting("FAULTS_COUNTER");
  if (!file) return -1;
  const int descriptor = static_cast<int>(syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC));
  if (descriptor < 0) return -1;
  void* at = mmap(nullptr, 8, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  syscall(SYS_close, descriptor);
  if (at == MAP_FAILED) return -1;
  const int64_t mine = __atomic_add_fetch(static_cast<int64_t*>(at), 1, __ATOMIC_SEQ_CST);
  munmap(at, 8);
  return mine;
}

void note(int64_t mine, const char* operation, const std::string& path) {
  const char* file = setting("FAULTS_LOG");
  if (!file) return;
  const int descriptor = static_cast<int>(syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
  const std::string line = std::to_string(mine) + "\t" + operation + "\t" + path + "\n";
  syscall(SYS_write, descriptor, line.data(), line.size());
  syscall(SYS_close, descriptor);
}

// Move the folder out of its place, as somebody else may at any instant.
void take_away(const std::string& fault) {
  const int error = errno;
  std::string under = setting("FAULTS_UNDER");
  under.pop_back();
  const std::string away = under + ".away";
  syscall(SYS_renameat, AT_FDCWD, under.c_str(), AT_FDCWD, away.c_str());
  if (fault == "replaced") syscall(SYS_mkdirat, AT_FDCWD, under.c_str(), 0755);
  if (fault == "gone") {
    const pid_t child = fork();
    if (child == 0) {
      char* const nothing[] = {nullptr};
      execle("/bin/rm", "rm", "-rf", away.c_str(), static_cast<char*>(nullptr), nothing);
      _exit(127);
    }
    waitpid(child, nullptr, 0);
  }
  errno = error;
}

enum class Fate { as_asked, torn_then_killed, fails };

// What becomes of the operation; `needs_room`: it asks the disk for space.
//
// kill            SIGKILL instead of the operation; of a write, after half of it
// term, int, usr2 the signal, and then the operation
// full            no space left from here on; of a write, after half of it
// once            no space left for this operation alone
// quota           as full, but what is used up is the user's share of the disk
// broken          the operation fails with EIO
// readonly        from here on nothing can be changed
// gone            the folder FAULTS_UNDER is removed with all that is in it, and then the operation
// away, replaced  it is renamed to <name>.away, and then the operation; `replaced` leaves an empty one in its place
Fate attack(const char* operation, const std::string& path, bool needs_room) {
  if (!counts(path)) return Fate::as_asked;
  const int error = errno;
  const int64_t mine = number();
  note(mine, operation, path);
  errno = error;
  const char* asked = setting("FAULTS_AT");
  const char* what = setting("FAULTS_DO");
  const int64_t at = asked ? atoll(asked) : 0;
  if (!what || at <= 0 || mine < at) return Fate::as_asked;
  const std::string fault = what;
  if ((fault == "full" || fault == "quota") && needs_room) {
    errno = fault == "full" ? ENOSPC : EDQUOT;
    return Fate::fails;
  }
  if (fault == "readonly" && strcmp(operation, "sync") != 0) {
    errno = EROFS;
    return Fate::fails;
  }
  if (mine != at) return Fate::as_asked;
  if (fault == "kill") return Fate::torn_then_killed;
  if (fault == "term") raise(SIGTERM);
  if (fault == "int") raise(SIGINT);
  if (fault == "usr2") raise(SIGUSR2);
  if (fault == "once" && needs_room) {
    errno = ENOSPC;
    return Fate::fails;
  }
  if (fault == "broken") {
    errno = EIO;
    return Fate::fails;
  }
  if (fault == "gone" || fault == "away" || fault == "replaced") take_away(fault);
  return Fate::as_asked;
}

// Whether somebody asks for the right to write where nothing can be changed.
bool refused(const std::string& path, int mode) {
  const char* what = setting("FAULTS_DO");
  if (!(mode & W_OK) || !what || strcmp(what, "readonly") != 0 || !counts(path + "/")) return false;
  errno = EROFS;
  return true;
}

[[noreturn]] void die() {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// Whether the operation is to be done; where it is not, errno says why.
bool allowed(const char* operation, const std::string& path, bool needs_room = false) {
  const Fate fate = attack(operation, path, needs_room);
  if (fate == Fate::torn_then_killed) die();
  return fate == Fate::as_asked;
}

bool for_writing(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

}  // namespace

#define MODE_OF(flags)                                  \
  mode_t mode = 0;                                      \
  if ((flags) & (O_CREAT | O_TMPFILE)) {                \
    va_list more;                                       \
    va_start(more, flags);                              \
    mode = static_cast<mode_t>(va_arg(more, int));      \
    va_end(more);                                       \
  }

extern "C" {

int open(const char* path, int flags, ...) {
  MODE_OF(flags)
  if (for_writing(flags) && !allowed("open", place_of(AT_FDCWD, path), flags & O_CREAT)) return -1;
  return static_cast<int>(next<int (*)(const char*, int, ...)>("open")(path, flags, mode));
}

int open64(const char* path, int flags, ...) {
  MODE_OF(flags)
  if (for_writing(flags) && !allowed("open", place_of(AT_FDCWD, path), flags & O_CREAT)) return -1;
  return next<int (*)(const char*, int, ...)>("open64")(path, flags, mode);
}

int openat(int folder, const char* path, int flags, ...) {
  MODE_OF(flags)
  if (for_writing(flags) && !allowed("open", place_of(folder, path), flags & O_CREAT)) return -1;
  return next<int (*)(int, const char*, int, ...)>("openat")(folder, path, flags, mode);
}

int openat64(int folder, const char* path, int flags, ...) {
  MODE_OF(flags)
  if (for_writing(flags) && !allowed("open", place_of(folder, path), flags & O_CREAT)) return -1;
  return next<int (*)(int, const char*, int, ...)>("openat64")(folder, path, flags, mode);
}

FILE* fopen(const char* path, const char* mode) {
  if (mode[0] != 'r' && !allowed("open", place_of(AT_FDCWD, path), true)) return nullptr;
  return next<FILE* (*)(const char*, const char*)>("fopen")(path, mode);
}

FILE* fopen64(const char* path, const char* mode) {
  if (mode[0] != 'r' && !allowed("open", place_of(AT_FDCWD, path), true)) return nullptr;
  return next<FILE* (*)(const char*, const char*)>("fopen64")(path, mode);
}

ssize_t write(int descriptor, const void* data, size_t size) {
  const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  if (!setting("FAULTS_UNDER")) return real(descriptor, data, size);
  const Fate fate = attack("write", place_of(descriptor), true);
  if (fate == Fate::as_asked) return real(descriptor, data, size);
  const int error = errno;
  if (size > 1) real(descriptor, data, size / 2);
  if (fate == Fate::torn_then_killed) die();
  errno = error;
  return -1;
}

size_t fwrite(const void* data, size_t size, size_t count, FILE* stream) {
  const auto real = next<size_t (*)(const void*, size_t, size_t, FILE*)>("fwrite");
  if (!setting("FAULTS_UNDER")) return real(data, size, count, stream);
  const Fate fate = attack("write", place_of(fileno(stream)), true);
  if (fate == Fate::as_asked) return real(data, size, count, stream);
  const int error = errno;
  const size_t half = real(data, size, count / 2, stream);
  fflush(stream);
  if (fate == Fate::torn_then_killed) die();
  errno = error;
  return half;
}

ssize_t pwrite(int descriptor, const void* data, size_t size, off_t at) {
  if (!allowed("write", place_of(descriptor), true)) return -1;
  return next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite")(descriptor, data, size, at);
}

ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t at) {
  if (!allowed("write", place_of(descriptor), true)) return -1;
  return next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64")(descriptor, data, size, at);
}

ssize_t writev(int descriptor, const struct iovec* pieces, int count) {
  if (!allowed("write", place_of(descriptor), true)) return -1;
  return next<ssize_t (*)(int, const struct iovec*, int)>("writev")(descriptor, pieces, count);
}

int access(const char* path, int mode) {
  if (refused(place_of(AT_FDCWD, path), mode)) return -1;
  return next<int (*)(const char*, int)>("access")(path, mode);
}

int faccessat(int folder, const char* path, int mode, int flags) {
  if (refused(place_of(folder, path), mode)) return -1;
  return next<int (*)(int, const char*, int, int)>("faccessat")(folder, path, mode, flags);
}

int ftruncate(int descriptor, off_t size) {
  if (!allowed("truncate", place_of(descriptor))) return -1;
  return next<int (*)(int, off_t)>("ftruncate")(descriptor, size);
}

int ftruncate64(int descriptor, off64_t size) {
  if (!allowed("truncate", place_of(descriptor))) return -1;
  return next<int (*)(int, off64_t)>("ftruncate64")(descriptor, size);
}

int fsync(int descriptor) {
  if (!allowed("sync", place_of(descriptor))) return -1;
  return next<int (*)(int)>("fsync")(descriptor);
}

int rename(const char* from, const char* to) {
  if (!allowed("rename", place_of(AT_FDCWD, to), true)) return -1;
  return next<int (*)(const char*, const char*)>("rename")(from, to);
}

int renameat(int from_folder, const char* from, int to_folder, const char* to) {
  if (!allowed("rename", place_of(to_folder, to), true)) return -1;
  return next<int (*)(int, const char*, int, const char*)>("renameat")(from_folder, from, to_folder, to);
}

int link(const char* from, const char* to) {
  if (!allowed("link", place_of(AT_FDCWD, to), true)) return -1;
  return next<int (*)(const char*, const char*)>("link")(from, to);
}

int mkdir(const char* path, mode_t mode) {
  if (!allowed("mkdir", place_of(AT_FDCWD, path), true)) return -1;
  return next<int (*)(const char*, mode_t)>("mkdir")(path, mode);
}

int rmdir(const char* path) {
  if (!allowed("rmdir", place_of(AT_FDCWD, path))) return -1;
  return next<int (*)(const char*)>("rmdir")(path);
}

int unlink(const char* path) {
  if (!allowed("unlink", place_of(AT_FDCWD, path))) return -1;
  return next<int (*)(const char*)>("unlink")(path);
}

int unlinkat(int folder, const char* path, int flags) {
  if (!allowed("unlink", place_of(folder, path))) return -1;
  return next<int (*)(int, const char*, int)>("unlinkat")(folder, path, flags);
}

}  // extern "C"
