/* A GPU that does what a program says of it: the line "driven FILE" of a script.
 *
 * FILE is the program's: it overwrites seven words of 8 bytes each time it turns to something else:
 *
 *     turn      a number that grows; the last word is the same, or the file is being written
 *     now       what it does: 0 it leaves the GPU alone, 1 it computes, 2 it waits in a collective (a kernel that polls)
 *     since     when it began that, in seconds of CLOCK_MONOTONIC, a double
 *     seconds   for how long it did each of them before that: three doubles
 *
 * Where there is no file, or none any more, the GPU is idle. Between two moments at which somebody looked it is taken
 * to have been the same all the time; so counters over a span between two looks are exact.
 */
#ifndef PIOLET_FAKE_NVML_DRIVEN_H
#define PIOLET_FAKE_NVML_DRIVEN_H

#define DRIVEN_KINDS 3

struct driven;

/* Return what looks into the file of that name, which need not be there. NULL: no memory, or the name is too long. */
struct driven *driven_by(const char *path);

/* Put into `seconds` for how long it did each from `from` to `to`, in seconds of CLOCK_MONOTONIC, not after now. */
void driven_seconds(struct driven *driven, double from, double to, double now, double seconds[DRIVEN_KINDS]);

#endif
