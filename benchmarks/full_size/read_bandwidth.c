/* Reads memory with as many threads as asked and prints bytes per second, the median of several passes.
 *
 *   read_bandwidth THREADS
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PASSES = 5, BYTES = 256 << 20, LANES = 32 };

static pthread_barrier_t barrier;
static volatile uint64_t sink;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

static void *read_all(void *unused) {
    (void)unused;
    uint64_t *values = aligned_alloc(1 << 21, BYTES);
    if (!values) exit(1);
    memset(values, 1, BYTES);
    for (int pass = 0; pass < PASSES; ++pass) {
        pthread_barrier_wait(&barrier);
        uint64_t sums[LANES] = {0};
        for (size_t place = 0; place < BYTES / sizeof(uint64_t); place += LANES) {
            __builtin_prefetch(values + place + 256);
            __builtin_prefetch(values + place + 264);
            __builtin_prefetch(values + place + 272);
            __builtin_prefetch(values + place + 280);
            for (int lane = 0; lane < LANES; ++lane) sums[lane] += values[place + lane];
        }
        for (int lane = 0; lane < LANES; ++lane) sink += sums[lane];
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static int compare(const void *one, const void *other) {
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

int main(int count, char **arguments) {
    int threads = count == 2 ? atoi(arguments[1]) : 0;
    if (threads < 1 || threads > 256) return 2;
    pthread_barrier_init(&barrier, NULL, threads + 1);
    pthread_t all[256];
    for (int index = 0; index < threads; ++index) pthread_create(all + index, NULL, read_all, NULL);
    double rates[PASSES];
    for (int pass = 0; pass < PASSES; ++pass) {
        pthread_barrier_wait(&barrier);
        double start = now();
        pthread_barrier_wait(&barrier);
        rates[pass] = (double)threads * BYTES / (now() - start);
    }
    for (int index = 0; index < threads; ++index) pthread_join(all[index], NULL);
    qsort(rates, PASSES, sizeof rates[0], compare);
    printf("%.0f\n", rates[PASSES / 2]);
    return 0;
}
