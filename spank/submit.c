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

/* Gives the path of a file in the user's cache; false: the user has none. */
static bool cache_path(char path[PATH_MAX], const char *verb, const char *name)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	const char *base = cache && cache[0] == '/' ? cache : home;

	return base && base[0] == '/' &&
	       snprintf(path, PATH_MAX, "%s%s/piolet/%s/%s", base, base == cache ? "" : "/.cache", verb, name) < PATH_MAX;
}

/* For `piolet env show`: a link that leads nowhere, whose text says which of the definitions that are kept the step has. Its
 * name has the cluster's, as homes may be shared: srun has put that into its own environment by now. One with a '/' in it
 * is below a directory that is not there, and nothing is noted. */
bool submission_note(uint32_t job, uint32_t step, const char *definition)
{
	char path[PATH_MAX], name[160], hash[20];
	const char *cluster = getenv("SLURM_CLUSTER_NAME");

	snprintf(name, sizeof(name), "%u.%u%s%.100s.job", job, step, cluster ? "." : "", cluster ? cluster : "");
	snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)record_key(definition, "", "", 0));
	return cache_path(path, "env", name) && (unlink(path) == 0 || errno == ENOENT) && symlink(hash, path) == 0;
}

static int open_cached(const char *verb, const char *request, const char *directory, const char *config)
{
	char path[PATH_MAX], name[32];
	struct stat st;
	int fd;

	snprintf(name, sizeof(name), "%016llx.rec", (unsigned long long)record_key(request, directory, config, geteuid()));
	fd = cache_path(path, verb, name) ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK) : -1;
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
	s->record = slurp(fd, PIOLET_RECORD_MAX, &s->length);	/* nothing, where there is no file */
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
	char *words[] = { (char *)command, "--config", (char *)config, (char *)verb, "submit", "--record-fd", "3", "--",
			  (char *)request, NULL };
	char directory[PATH_MAX];

	if (!getcwd(directory, sizeof(directory)))
		return fail(f, NULL, "cannot tell the working directory: %s", strerror(errno));
	if (cached && !MOVED && submission_cached(verb, config, request, s))
		return 0;
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
