/* command.c - in srun, sbatch and salloc, as the user: run the `piolet` command and wait for it.
 *
 * It talks to the user on stderr itself, and hands its result back in a memory file, on descriptor 3. Its own
 * waits are bounded; a signal that would end srun ends the command, and it does not outlive srun.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define RESULT_FD 3
#define LINE_MAX_BYTES (1 << 20)

unsigned command_seconds;

static pid_t start(char *const *words, int result)
{
	pid_t parent = getpid(), pid = fork();
	struct sigaction now;
	sigset_t none;

	if (pid != 0)
		return pid;
	/* srun blocks ten signals here; a command that inherited that could not be interrupted. */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* What srun itself was started to ignore, by nohup or a script's &, the command ignores; with SIGCHLD it could not work. */
	for (int number = 1; number < NSIG; number++)
		if (number == SIGCHLD || (sigaction(number, NULL, &now) == 0 && now.sa_handler != SIG_IGN))
			signal(number, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(127);
	/* The command's own output would mix with that of the application; dup2 onto itself would keep close-on-exec. */
	if (dup2(STDERR_FILENO, STDOUT_FILENO) < 0 ||
	    (result == RESULT_FD ? fcntl(result, F_SETFD, 0) < 0 : dup2(result, RESULT_FD) < 0))
		_exit(127);
	alarm(command_seconds);
	execv(words[0], words);
	dprintf(STDERR_FILENO, "piolet: error: cannot run %s: %s\n", words[0], strerror(errno));
	_exit(127);
}

/* srun keeps these from ending it: its main thread blocks them, a thread of its own waits for them, and from 24.11 on others
 * do not block them. The kernel gives a signal to the main thread first, where that takes it: so it does, for as long. */
static const int ends[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
#define ENDS (sizeof(ends) / sizeof(ends[0]))
static volatile sig_atomic_t noted;

static void note(int number)
{
	noted = number;
}

/* Starts the command and waits for its end; returns its number, or -1 where it could not be started. */
static pid_t run(char *const *words, int result, int *status)
{
	struct sigaction own = { .sa_handler = note }, now, before[ENDS];
	struct pollfd p = { .fd = -1, .events = POLLIN };
	pid_t pid = 0, done = 0;
	sigset_t open, mask;
	int kills = 0;

	noted = 0;
	sigemptyset(&open);
	for (size_t i = 0; i < ENDS; i++)
		sigaddset(&open, ends[i]);
	do {
		/* Again and again: from 24.11 on, a thread of Slurm's sets its own handlers when it comes to it. */
		for (size_t i = 0; i < ENDS; i++)
			if (sigaction(ends[i], NULL, &now) == 0 && now.sa_handler != SIG_IGN && now.sa_handler != note) {
				before[i] = now;
				sigaction(ends[i], &own, NULL);
			}
		/* Only now: of a signal that comes before that, srun alone is told, and the command goes on. */
		if (pid == 0) {
			sigprocmask(SIG_UNBLOCK, &open, &mask);
			pid = start(words, result);
			if (pid < 0)
				break;
			p.fd = (int)syscall(SYS_pidfd_open, pid, 0);
		} else {
			poll(&p, 1, 100);
		}
		done = waitpid(pid, status, WNOHANG);
		if (done == 0 && noted)
			kill(pid, kills++ < 20 ? SIGTERM : SIGKILL);
	} while (done == 0 || (done < 0 && errno == EINTR));
	if (p.fd >= 0)
		close(p.fd);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	for (size_t i = 0; i < ENDS; i++)
		if (sigaction(ends[i], NULL, &now) == 0 && now.sa_handler == note)
			sigaction(ends[i], &before[i], NULL);
	/* To whichever thread srun has for it. */
	if (noted)
		kill(getpid(), noted);
	return pid;
}

/* Reads all of an open regular file of 1 to `limit` bytes; NULL where it is not one. The caller frees. The file's offset,
 * which tasks share, is neither used nor moved. */
char *slurp(int fd, size_t limit, size_t *length)
{
	struct stat st;
	size_t got = 0;
	char *bytes;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 || (size_t)st.st_size > limit)
		return NULL;
	bytes = malloc((size_t)st.st_size);
	while (bytes && got < (size_t)st.st_size) {
		ssize_t n = pread(fd, bytes + got, (size_t)st.st_size - got, (off_t)got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			free(bytes);
			return NULL;
		}
		got += (size_t)n;
	}
	*length = got;
	return bytes;
}

/* Returns how this process was called, NUL-terminated words, of which those beyond LINE_MAX_BYTES are missing; NULL where
 * that cannot be read. The caller frees. */
char *command_line(size_t *length)
{
	char *bytes = malloc(LINE_MAX_BYTES);
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : 0;

	*length = 0;
	while (bytes && fd >= 0 &&
	       ((n = read(fd, bytes + *length, LINE_MAX_BYTES - *length)) > 0 || (n < 0 && errno == EINTR)))
		*length += n > 0 ? (size_t)n : 0;
	if (fd >= 0)
		close(fd);
	if (n < 0) {
		free(bytes);
		return NULL;
	}
	return bytes;
}

/* Whether this process was called with these bytes, NULs among them; true where that cannot be told. */
bool called_with(const char *bytes, size_t size)
{
	size_t length;
	char *line = command_line(&length);
	bool found = !line || memmem(line, length, bytes, size);

	free(line);
	return found;
}

/* Runs the command and returns its exit status, with what it wrote to descriptor 3 (NULL: nothing).
 *
 * -1: it could not be run, or a signal ended it. It has said why on stderr, unless `f` is set or the user knows. */
int command_run(char *const *words, size_t limit, char **result, size_t *length, struct failure *f)
{
	int fd = memfd_create("piolet-result", MFD_CLOEXEC), status = -1;

	*result = NULL;
	*length = 0;
	if (fd < 0)
		return fail(f, NULL, "cannot make a memory file: %s", strerror(errno));
	if (run(words, fd, &status) < 0) {
		close(fd);
		return fail(f, NULL, "cannot start %s: %s", words[0], strerror(errno));
	}
	*result = slurp(fd, limit, length);
	close(fd);
	/* The user's own signal needs no comment. */
	if (WIFSIGNALED(status) && !noted)
		return fail(f, "the machine may be short of memory", "%s was ended by signal %d", words[0], WTERMSIG(status));
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
