/* GPUs that do what a program says; see driven.h. */
#include "driven.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOOKS 1024
#define APART_S 0.02 /* so LOOKS are of 20 s and more */
#define TRIES 100

struct look {
    double at, seconds[DRIVEN_KINDS];
};

struct driven {
    char path[256];
    int count, next;
    struct look looks[LOOKS]; /* a ring */
    struct look last;         /* what the file said when it was there */
};

struct told {
    uint64_t turn, now;
    double since, seconds[DRIVEN_KINDS];
    uint64_t again;
};

struct driven *driven_by(const char *path) {
    struct driven *driven = calloc(1, sizeof *driven);
    if (driven != NULL && (size_t)snprintf(driven->path, sizeof driven->path, "%s", path) >= sizeof driven->path) {
        free(driven);
        return NULL;
    }
    return driven;
}

static int read_file(const char *path, struct told *told) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), status = -1;
    for (int i = 0; file >= 0 && status != 0 && i < TRIES; i++) {
        status = pread(file, told, sizeof *told, 0) == sizeof *told && told->turn == told->again && told->now < DRIVEN_KINDS
                     ? 0 : -1;
    }
    if (file >= 0) {
        (void)close(file);
    }
    return status;
}

static struct look look_now(struct driven *driven, double now) {
    struct told told;
    if (read_file(driven->path, &told) == 0) {
        memcpy(driven->last.seconds, told.seconds, sizeof told.seconds);
        if (now > told.since) {
            driven->last.seconds[told.now] += now - told.since;
        }
    }
    driven->last.at = now;
    if (driven->count == 0 || now - driven->looks[(driven->next + LOOKS - 1) % LOOKS].at >= APART_S) {
        driven->looks[driven->next] = driven->last;
        driven->next = (driven->next + 1) % LOOKS;
        driven->count += driven->count < LOOKS;
    }
    return driven->last;
}

/* The seconds up to `at`: between the two looks that it lies between, in proportion; 0 before the first. */
static void until(const struct driven *driven, const struct look *newest, double at, double seconds[DRIVEN_KINDS]) {
    struct look after = *newest, before = {0};
    memset(seconds, 0, DRIVEN_KINDS * sizeof *seconds);
    for (int i = 1; i <= driven->count; i++) {
        before = driven->looks[(driven->next + LOOKS - i) % LOOKS];
        if (before.at <= at) {
            break;
        }
        after = before;
    }
    if (before.at > at) {
        return;
    }
    double share = after.at > before.at && at < after.at ? (at - before.at) / (after.at - before.at) : 1;
    for (int kind = 0; kind < DRIVEN_KINDS; kind++) {
        seconds[kind] = before.seconds[kind] + share * (after.seconds[kind] - before.seconds[kind]);
    }
}

void driven_seconds(struct driven *driven, double from, double to, double now, double seconds[DRIVEN_KINDS]) {
    double first[DRIVEN_KINDS];
    struct look newest = look_now(driven, now);
    until(driven, &newest, from, first);
    until(driven, &newest, to, seconds);
    for (int kind = 0; kind < DRIVEN_KINDS; kind++) {
        seconds[kind] = seconds[kind] > first[kind] ? seconds[kind] - first[kind] : 0;
    }
}
