/* message.c - messages and records as bytes.
 *
 * Every function takes a buffer and its length, believes nothing in it, and either accepts all of it
 * or fails with one sentence. No allocation; no I/O except the stat(2) of a record's dependencies, and what record_notes
 * writes for the user.
 */
#include "shim.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

int fail(struct failure *f, const char *hint, const char *format, ...)
{
	va_list arguments;

	if (f->set)
		return -1;
	f->set = true;
	va_start(arguments, format);
	vsnprintf(f->message, sizeof(f->message), format, arguments);
	va_end(arguments);
	snprintf(f->hint, sizeof(f->hint), "%s", hint ? hint : "");
	return -1;
}

/* Fills in the header and the lengths of `start`, writes the whole message to `out`; 0 on failure. */
size_t start_encode(struct piolet_start *start, const uint32_t *groups, const char *definition, char *out,
		    size_t size, struct failure *f)
{
	size_t length;

	if (start->groups > PIOLET_GROUPS_MAX) {
		fail(f, NULL, "the user has %u supplementary groups, more than the limit of %d", start->groups,
		     PIOLET_GROUPS_MAX);
		return 0;
	}
	if (start->definition > PIOLET_DEFINITION_MAX) {
		fail(f, "shorten [env] or the annotations", "the environment definition has %u bytes, more than %d",
		     start->definition, PIOLET_DEFINITION_MAX);
		return 0;
	}
	length = sizeof(*start) + 4 * (size_t)start->groups + start->definition;
	if (length > size) {
		fail(f, NULL, "the START message of %zu bytes does not fit into %zu", length, size);
		return 0;
	}
	start->header = (struct piolet_header){ PIOLET_MAGIC, PIOLET_VERSION, PIOLET_START, (uint32_t)length, 0 };
	start->node[sizeof(start->node) - 1] = '\0';
	memcpy(out, start, sizeof(*start));
	if (start->groups)
		memcpy(out + sizeof(*start), groups, 4 * (size_t)start->groups);
	if (start->definition)
		memcpy(out + sizeof(*start) + 4 * (size_t)start->groups, definition, start->definition);
	return length;
}

static bool terminated(const char *text, size_t size)
{
	return memchr(text, '\0', size) != NULL;
}

/* Takes over `descriptors` in any case: on failure the caller closes them through reply_close. */
int reply_decode(struct reply *reply, size_t length, const int *descriptors, size_t count, struct failure *f)
{
	const char *broken = "restart pioletd.service on the node; if it happens again, report it";
	const struct piolet_header *header = (const void *)reply->bytes;
	const struct piolet_ready *ready = (const void *)reply->bytes;
	const struct piolet_error *error = (const void *)reply->bytes;
	int *slots[REPLY_DESCRIPTORS] = { &reply->user_ns, &reply->mount_ns, &reply->environment };
	size_t taken = 0;

	/* First into safe hands, in whatever order, then into the slots that the flags name. */
	for (size_t i = 0; i < REPLY_DESCRIPTORS; i++)
		*slots[i] = i < count ? descriptors[i] : -1;
	reply->ready = NULL;
	if (length < sizeof(*header) || length > sizeof(reply->bytes))
		return fail(f, broken, "pioletd answered with %zu bytes, which is not a message", length);
	if (header->magic != PIOLET_MAGIC || header->length != length)
		return fail(f, broken, "pioletd answered with something that is not a message");
	if (header->version != PIOLET_VERSION)
		return fail(f, "install the same version of the plugins and of pioletd on this node",
			    "pioletd speaks version %u of the protocol, the plugin version %d", header->version,
			    PIOLET_VERSION);
	if (header->kind == PIOLET_ERROR) {
		if (length != sizeof(*error) || !terminated(error->message, sizeof(error->message)) ||
		    !terminated(error->hint, sizeof(error->hint)))
			return fail(f, broken, "pioletd reported an error that cannot be read");
		return fail(f, error->hint, "%s", error->message);
	}
	if (header->kind != PIOLET_READY || length != sizeof(*ready))
		return fail(f, broken, "pioletd answered with a message of the unknown kind %u", header->kind);
	if (!terminated(ready->workdir, sizeof(ready->workdir)) ||
	    !terminated(ready->entrypoint, sizeof(ready->entrypoint)) ||
	    ready->environment > PIOLET_ENVIRONMENT_MAX ||
	    ready->descriptors >= 1u << REPLY_DESCRIPTORS)
		return fail(f, broken, "pioletd answered READY with impossible values");
	/* Both namespaces or none: joining one of two would run the task half outside. */
	if (!(ready->descriptors & PIOLET_HAS_USER_NS) != !(ready->descriptors & PIOLET_HAS_MOUNT_NS))
		return fail(f, broken, "pioletd handed over one namespace of two");
	if ((size_t)__builtin_popcount(ready->descriptors) != count)
		return fail(f, broken, "pioletd handed over %zu descriptors and announced %d", count,
			    __builtin_popcount(ready->descriptors));
	for (size_t i = 0; i < REPLY_DESCRIPTORS; i++)
		*slots[i] = ready->descriptors & (1u << i) ? descriptors[taken++] : -1;
	reply->ready = ready;
	return 0;
}

/* The environment file: NUL-terminated "+NAME=VALUE" and "-NAME", nothing else. */
int environment_check(const char *entries, size_t length, struct failure *f)
{
	size_t at = 0;

	while (at < length) {
		const char *entry = entries + at;
		size_t room = length - at, size = strnlen(entry, room);
		const char *equals = memchr(entry, '=', size);

		if (size == room || size < 2 || (entry[0] != '+' && entry[0] != '-') || entry[1] == '=' ||
		    (entry[0] == '+') != (equals != NULL))
			return fail(f, NULL, "pioletd handed over an environment with a malformed entry");
		at += size + 1;
	}
	return 0;
}

static uint64_t nanoseconds(struct timespec t)
{
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool holds(const struct piolet_dependency *d, const char *name, const char *value, const char *request,
		  const char *directory)
{
	const char *now;
	struct timespec clock;
	struct stat st;

	switch (d->kind) {
	case PIOLET_DEP_FILE:
		return stat(name, &st) == 0 && st.st_dev == d->device && st.st_ino == d->inode &&
		       (uint64_t)st.st_size == d->size && nanoseconds(st.st_mtim) == d->mtime_ns &&
		       nanoseconds(st.st_ctim) == d->ctime_ns;
	case PIOLET_DEP_EXISTS:
		return stat(name, &st) == 0;
	case PIOLET_DEP_ABSENT:
		return stat(name, &st) != 0 && (errno == ENOENT || errno == ENOTDIR);
	case PIOLET_DEP_VARIABLE:
		now = getenv(name);
		return now && strcmp(now, value) == 0;
	case PIOLET_DEP_UNSET:
		return getenv(name) == NULL;
	case PIOLET_DEP_REQUEST:
		return strcmp(name, request) == 0 && strcmp(value, directory) == 0;
	case PIOLET_DEP_NOTE:
		return true;
	case PIOLET_DEP_UNTIL:
		return clock_gettime(CLOCK_REALTIME, &clock) == 0 && nanoseconds(clock) >= d->mtime_ns &&
		       nanoseconds(clock) < d->ctime_ns;
	default:
		return false;
	}
}

/* Finds the definition in a record that is for this request and whose dependencies all hold. */
int record_check(const char *record, size_t length, const char *request, const char *directory,
		 const char **definition, size_t *definition_length, struct failure *f)
{
	struct piolet_record head;
	size_t at = sizeof(head), end;

	if (length < sizeof(head) || length > PIOLET_RECORD_MAX)
		return fail(f, NULL, "the record of the environment has %zu bytes, which is impossible", length);
	memcpy(&head, record, sizeof(head));
	if (head.magic != PIOLET_RECORD_MAGIC || head.version != PIOLET_VERSION || head.length != length)
		return fail(f, NULL, "the record of the environment is of another version");
	if (head.definition == 0 || head.definition > PIOLET_DEFINITION_MAX ||
	    head.definition > length - sizeof(head) || head.dependencies == 0 ||
	    head.dependencies > PIOLET_DEPENDENCIES_MAX)
		return fail(f, NULL, "the record of the environment has impossible lengths");
	end = length - head.definition;
	for (uint32_t i = 0; i < head.dependencies; i++) {
		struct piolet_dependency d;
		const char *name, *value;

		if (end - at < sizeof(d))
			return fail(f, NULL, "the record of the environment is cut short");
		memcpy(&d, record + at, sizeof(d));
		if (d.length % 8 || d.length > end - at || d.length < sizeof(d) || d.name == 0 || d.value == 0 ||
		    d.name > d.length - sizeof(d) || d.value > d.length - sizeof(d) - d.name)
			return fail(f, NULL, "the record of the environment has a malformed dependency");
		name = record + at + sizeof(d);
		value = name + d.name;
		if (name[d.name - 1] || value[d.value - 1])
			return fail(f, NULL, "the record of the environment has a malformed dependency");
		if ((d.kind == PIOLET_DEP_REQUEST) != (i == 0) || !holds(&d, name, value, request, directory))
			return fail(f, NULL, "the record of the environment is stale: %.200s changed", name);
		at += d.length;
	}
	if (at != end || memchr(record + end, '\0', head.definition))
		return fail(f, NULL, "the record of the environment has bytes that belong to nothing");
	*definition = record + end;
	*definition_length = head.definition;
	return 0;
}

/* Says again what the user was told when the record was made. Only for a record that record_check took. */
void record_notes(const char *record, int out)
{
	struct piolet_record head;
	size_t at = sizeof(head);

	memcpy(&head, record, sizeof(head));
	for (uint32_t i = 0; i < head.dependencies; i++) {
		struct piolet_dependency d;

		memcpy(&d, record + at, sizeof(d));
		if (d.kind == PIOLET_DEP_NOTE)
			dprintf(out, "%s\n", record + at + sizeof(d));
		at += d.length;
	}
}

/* FNV-1a, 64 bits: names the cache file. The record itself names request and directory, and watches the
 * configuration file, so that a collision costs a rendering. */
uint64_t record_key(const char *request, const char *directory, const char *config, uid_t uid)
{
	char number[24];
	const char *parts[] = { directory, request, config, number };
	uint64_t hash = 0xcbf29ce484222325u;

	snprintf(number, sizeof(number), "%u", (unsigned)uid);
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		for (const char *at = parts[i], *end = at + strlen(at); at <= end; at++)
			hash = (hash ^ (unsigned char)*at) * 0x100000001b3u;
	return hash;
}
