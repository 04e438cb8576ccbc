/* submit.c - in srun, sbatch and salloc, as the user: what the request means.
 *
 * A record in the user's cache whose dependencies all hold is taken as it is: no process is started.
 * Otherwise the `piolet` command renders the definition, pulls the image if need be, talks to the user
 * on stderr itself, and hands back a record. Signals that would end srun end the command, too.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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

#define RECORD_FD 3

void submission_free(struct submission *s)
{
	free(s->record);
	*s = (struct submission){ 0 };
}

/* Reads all of an open regular file of a plausible size. */
static int slurp(int fd, struct submission *s, struct failure *f)
{
	struct stat st;
	size_t got = 0;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > PIOLET_RECORD_MAX)
		return fail(f, NULL, "there is no record of the environment");
	s->record = malloc((size_t)st.st_size);
	if (!s->record)
		return fail(f, NULL, "out of memory");
	s->length = (size_t)st.st_size;
	while (got < s->length) {
		ssize_t n = pread(fd, s->record + got, s->length - got, (off_t)got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fail(f, NULL, "the record of the environment cannot be read");
		got += (size_t)n;
	}
	return 0;
}

static int open_cached(const char *request, const char *directory, const char *config)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	const char *base = cache && cache[0] == '/' ? cache : home;
	char path[PATH_MAX];
	struct stat st;
	int n, fd;

	if (!base || base[0] != '/')
		return -1;
	n = snprintf(path, sizeof(path), "%s%s/piolet/env/%016llx.rec", base, base == cache ? "" : "/.cache",
		     (unsigned long long)record_key(request, directory, config, geteuid()));
	if (n < 0 || (size_t)n >= sizeof(path))
		return -1;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	/* Only what this user wrote and nobody else can write: a record says which image and mounts to use. */
	if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_uid != geteuid() || st.st_mode & (S_IWGRP | S_IWOTH))) {
		close(fd);
		return -1;
	}
	return fd;
}

static pid_t start(const char *command, const char *config, const char *request, int record)
{
	pid_t parent = getpid(), pid = fork();
	sigset_t none;

	if (pid != 0)
		return pid;
	/* srun blocks ten signals here; a command that inherited that could not be interrupted. */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(127);
	/* The command's own output would mix with that of the application. */
	if (dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
		_exit(127);
	/* dup2 onto itself would keep close-on-exec. */
	if (record == RECORD_FD ? fcntl(record, F_SETFD, 0) < 0 : dup2(record, RECORD_FD) < 0)
		_exit(127);
	if (config)
		execl(command, command, "--config", config, "env", "submit", "--record-fd", "3", "--", request, NULL);
	else
		execl(command, command, "env", "submit", "--record-fd", "3", "--", request, NULL);
	dprintf(STDERR_FILENO, "piolet: error: cannot run %s: %s\n", command, strerror(errno));
	_exit(127);
}

static bool interrupted(void)
{
	sigset_t pending;

	return sigpending(&pending) == 0 && (sigismember(&pending, SIGINT) || sigismember(&pending, SIGTERM) ||
					     sigismember(&pending, SIGHUP) || sigismember(&pending, SIGQUIT));
}

/* Waits for the command; its own waits are bounded, and a signal to srun ends it. */
static int reap(pid_t pid)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), status, kills = 0;

	for (;;) {
		struct pollfd p = { .fd = pidfd, .events = POLLIN };
		pid_t done = waitpid(pid, &status, WNOHANG);

		if (done == pid || (done < 0 && errno != EINTR))
			break;
		if (interrupted())
			kill(pid, kills++ < 20 ? SIGTERM : SIGKILL);
		poll(&p, pidfd >= 0 ? 1 : 0, 100);
	}
	if (pidfd >= 0)
		close(pidfd);
	return status;
}

int submission_get(const char *command, const char *config, const char *request, struct submission *s,
		   struct failure *f)
{
	struct failure stale = { 0 };
	char directory[PATH_MAX];
	int fd, status;
	pid_t pid;

	*s = (struct submission){ 0 };
	if (!getcwd(directory, sizeof(directory)))
		return fail(f, NULL, "cannot tell the working directory: %s", strerror(errno));
	fd = open_cached(request, directory, config);
	if (fd >= 0) {
		int rc = slurp(fd, s, &stale);

		close(fd);
		if (rc == 0 && record_check(s->record, s->length, request, directory, &s->definition,
					    &s->definition_length, &stale) == 0) {
			record_notes(s->record, STDERR_FILENO);
			return 0;
		}
		submission_free(s);
	}
	fd = memfd_create("piolet-record", MFD_CLOEXEC);
	if (fd < 0)
		return fail(f, NULL, "cannot make a memory file: %s", strerror(errno));
	pid = start(command, config, request, fd);
	if (pid < 0) {
		close(fd);
		return fail(f, NULL, "cannot start %s: %s", command, strerror(errno));
	}
	status = reap(pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		close(fd);
		/* The command has said why on stderr, unless a signal ended it: then there is nothing to add. */
		f->set = true;
		f->message[0] = f->hint[0] = '\0';
		return -1;
	}
	status = slurp(fd, s, f);
	close(fd);
	if (status < 0 || record_check(s->record, s->length, request, directory, &s->definition,
				       &s->definition_length, f) < 0) {
		submission_free(s);
		return -1;
	}
	return 0;
}
