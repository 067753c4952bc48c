/* Put before the C library by LD_PRELOAD: reads that fail, and clocks that jump.

   FAULTY_READS  part of a path: reading from such files fails with EIO
   JUMPING_CLOCK set to anything: the time of day is ten years ahead or behind, in turn */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int is_faulty(int descriptor) {
  const char *wanted = getenv("FAULTY_READS");
  char link[64], path[4096];
  if (wanted == NULL || *wanted == 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strstr(path, wanted) != NULL;
}

ssize_t read(int descriptor, void *buffer, size_t count) {
  static ssize_t (*next)(int, void *, size_t);
  if (next == NULL) next = dlsym(RTLD_NEXT, "read");
  if (is_faulty(descriptor)) {
    errno = EIO;
    return -1;
  }
  return next(descriptor, buffer, count);
}

static time_t jump(void) {
  static int calls;
  return getenv("JUMPING_CLOCK") == NULL ? 0 : (++calls % 2 ? 1 : -1) * 315360000L;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*next)(clockid_t, struct timespec *);
  if (next == NULL) next = dlsym(RTLD_NEXT, "clock_gettime");
  int outcome = next(clock, now);
  if (outcome == 0 && clock == CLOCK_REALTIME) now->tv_sec += jump();
  return outcome;
}

int gettimeofday(struct timeval *now, void *zone) {
  static int (*next)(struct timeval *, void *);
  if (next == NULL) next = dlsym(RTLD_NEXT, "gettimeofday");
  int outcome = next(now, zone);
  if (outcome == 0) now->tv_sec += jump();
  return outcome;
}

time_t time(time_t *place) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (place != NULL) *place = now.tv_sec;
  return now.tv_sec;
}
