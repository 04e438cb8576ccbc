/* hunter SIGNAL SECONDS: sends SIGNAL to whatever process comes next on this machine and may be signalled.
 *
 * Run by a user beside a step of theirs whose container is being ended: what joins the container's user namespace to end
 * it may be signalled by the namespace's owner from then on. Its own next pids are guessed from the last one given out.
 * Says how many signals were sent.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int last_pid(int fd)
{
	char text[128];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	if (n <= 0)
		return -1;
	text[n] = 0;
	char *blank = strrchr(text, ' ');
	return blank ? atoi(blank + 1) : -1;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	int number = atoi(argv[1]);
	time_t end = time(NULL) + atoi(argv[2]);
	int fd = open("/proc/loadavg", O_RDONLY);
	int first = last_pid(fd);
	long hits = 0;
	int hit[1024], count = 0;
	printf("hunting\n");
	fflush(stdout);
	while (time(NULL) < end) {
		int last = last_pid(fd);
		for (int round = 0; round < 20; round++) {
			for (int pid = last - 3; pid <= last + 3; pid++) {
				if (pid <= first || pid == getpid() || kill(pid, number) != 0)
					continue;
				hits++;
				if (count < 1024 && (!count || hit[count - 1] != pid))
					hit[count++] = pid;
			}
		}
	}
	while (count-- > 0) {
		char path[64], name[64] = "";
		snprintf(path, sizeof(path), "/proc/%d/comm", hit[count]);
		int comm = open(path, O_RDONLY);
		if (comm >= 0 && read(comm, name, sizeof(name) - 1) > 0 && strncmp(name, "pioletd", 7))
			kill(hit[count], SIGCONT);
		if (comm >= 0)
			close(comm);
	}
	printf("%ld\n", hits);
	return 0;
}
