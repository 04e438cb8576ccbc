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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void submission_free(struct submission *s)
{
	free(s->record);
	*s = (struct submission){ 0 };
}

static int open_cached(const char *verb, const char *request, const char *directory, const char *config)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	const char *base = cache && cache[0] == '/' ? cache : home;
	char path[PATH_MAX];
	struct stat st;
	int n, fd;

	if (!base || base[0] != '/')
		return -1;
	n = snprintf(path, sizeof(path), "%s%s/piolet/%s/%016llx.rec", base, base == cache ? "" : "/.cache", verb,
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

bool submission_cached(const char *verb, const char *config, const char *request, struct submission *s)
{
	struct failure stale = { 0 };
	char directory[PATH_MAX];
	int fd;

	*s = (struct submission){ 0 };
	if (!getcwd(directory, sizeof(directory)))
		return false;
	fd = open_cached(verb, request, directory, config);
	if (fd < 0)
		return false;
	s->record = slurp(fd, PIOLET_RECORD_MAX, &s->length);
	close(fd);
	if (s->record && record_check(s->record, s->length, request, directory, &s->definition,
				      &s->definition_length, &stale) == 0) {
		record_notes(s->record, STDERR_FILENO);
		return true;
	}
	submission_free(s);
	return false;
}

int submission_get(const char *verb, const char *command, const char *config, const char *request, bool cached,
		   struct submission *s, struct failure *f)
{
	char *words[] = { (char *)command, (char *)verb, "submit", "--record-fd", "3", "--", (char *)request, NULL, NULL, NULL };
	char directory[PATH_MAX];

	if (!getcwd(directory, sizeof(directory)))
		return fail(f, NULL, "cannot tell the working directory: %s", strerror(errno));
	if (cached && !MOVED && submission_cached(verb, config, request, s))
		return 0;
	if (config) {
		memmove(words + 3, words + 1, 6 * sizeof(*words));
		words[1] = "--config";
		words[2] = (char *)config;
	}
	if (command_run(words, PIOLET_RECORD_MAX, &s->record, &s->length, f) != 0) {
		submission_free(s);
		/* Where `f` does not say why, the command has, or the user ended it. */
		f->set = true;
		return -1;
	}
	if (!s->record)
		return fail(f, NULL, "piolet %s submit made no record", verb);
	if (record_check(s->record, s->length, request, directory, &s->definition, &s->definition_length, f) == 0)
		return 0;
	submission_free(s);
	return -1;
}
