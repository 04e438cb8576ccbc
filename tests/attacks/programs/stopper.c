/* stopper NAME SECONDS: sends SIGSTOP, again and again, to every process of the user's with this name.
 *
 * A process that has become the user is the user's to stop, whatever it is about to do for them.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PIDS (1 << 22)

static char kind[PIDS]; /* 0: not known, 1: not of that name, 2: it is */

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	time_t end = time(NULL) + atoi(argv[2]);
	char path[64], name[64];
	printf("stopping\n");
	fflush(stdout);
	while (time(NULL) < end) {
		DIR *proc = opendir("/proc");
		struct dirent *entry;
		while (proc && (entry = readdir(proc))) {
			int pid = atoi(entry->d_name);
			if (pid <= 0 || pid >= PIDS)
				continue;
			/* A fresh process gets its name a moment later: one that has another is looked at again. */
			if (kind[pid] != 2) {
				snprintf(path, sizeof(path), "/proc/%d/comm", pid);
				int fd = open(path, O_RDONLY);
				ssize_t n = fd < 0 ? -1 : read(fd, name, sizeof(name) - 1);
				if (fd >= 0)
					close(fd);
				if (n <= 0)
					continue;
				name[n - 1] = 0;
				kind[pid] = strcmp(name, argv[1]) ? 1 : 2;
			}
			if (kind[pid] == 2)
				kill(pid, SIGSTOP);
		}
		closedir(proc);
	}
	return 0;
}
