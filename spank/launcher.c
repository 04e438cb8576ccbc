/* launcher.c - task prologs in containers, under Slurm 24.11 and newer.
 *
 * Slurm starts a prolog by way of slurmstepd itself, which it executes again from a descriptor that it opened when
 * the step began. The task is in its container by then, without the libraries of the host, so that fails. In the task,
 * the descriptor therefore becomes our entry program, which is static and does what that slurmstepd would do.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

void launcher_replace(const char *program)
{
	int entry = open(program, O_PATH | O_CLOEXEC);
	DIR *open_files = entry < 0 ? NULL : opendir("/proc/self/fd");
	struct stat own, other;
	struct dirent *one;

	if (open_files && stat("/proc/self/exe", &own) == 0)
		while ((one = readdir(open_files))) {
			int fd = atoi(one->d_name);

			if (fd > STDERR_FILENO && fstat(fd, &other) == 0 && other.st_dev == own.st_dev && other.st_ino == own.st_ino)
				dup3(entry, fd, O_CLOEXEC);
		}
	if (open_files)
		closedir(open_files);
	if (entry >= 0)
		close(entry);
}
