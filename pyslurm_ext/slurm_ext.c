/* slurm_ext.c - libslurm's answers as columns.
 *
 * A listing of ten thousand jobs crosses into Python as a few dozen arrays instead of as hundreds of thousands of
 * members: every member of a record that we take is a column of 64-bit numbers, and a text is the number of a string in
 * one list of strings. Whatever libslurm allocated is freed before a function returns.
 *
 * What differs between versions of Slurm stands in the first section, and nowhere else.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>

/* -- versions */

/* The library has these; its header does not say so. */
char *slurm_job_state_string(uint32_t state);
#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(23, 11, 0)
char *slurm_job_state_reason_string(int reason);
#define slurm_job_reason_string slurm_job_state_reason_string
#else
char *slurm_job_reason_string(int reason);
#endif

#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(23, 11, 0)
typedef hostlist_t *hosts_t;
#else
typedef hostlist_t hosts_t;
#endif

/* 24.11 names a job by its number, 26.05 by a step id; those between were not tried. */
#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(25, 11, 0)
static slurm_step_id_t named(uint32_t job)
{
	slurm_step_id_t id = SLURM_STEP_ID_INITIALIZER;

	id.job_id = job;
	return id;
}

static int load_steps(uint32_t job, job_step_info_response_msg_t **out)
{
	slurm_step_id_t id = named(job);

	return slurm_get_job_steps(&id, out, SHOW_ALL);
}

static void name_job(job_desc_msg_t *update, uint32_t job)
{
	update->step_id.job_id = job;
}

/* slurmctld takes the user from the message's credential. */
static void name_user(update_node_msg_t *update, uint32_t uid)
{
	(void)update, (void)uid;
}
#else
static uint32_t named(uint32_t job)
{
	return job;
}

static int load_steps(uint32_t job, job_step_info_response_msg_t **out)
{
	return slurm_get_job_steps(0, job, NO_VAL, out, SHOW_ALL);
}

static void name_job(job_desc_msg_t *update, uint32_t job)
{
	update->job_id = job;
}

static void name_user(update_node_msg_t *update, uint32_t uid)
{
	update->reason_uid = uid;
}
#endif

/* -- columns */

#define COLUMNS_MAX 32

struct ext_table {
	size_t rows, columns;
	int64_t *cells[COLUMNS_MAX];	/* of a text: its number in `strings`, or NO_TEXT */
	uint8_t gaps[COLUMNS_MAX];	/* whether the column has a NOTHING */
	char *strings;			/* NUL-terminated, one after the other; the first is empty */
	size_t length, room, count;
	void *answer;			/* libslurm's; to be freed with `release` */
	void (*release)(void *);
	int64_t last[COLUMNS_MAX];	/* the string that the column had last, and where it is: many rows say the same */
	size_t last_at[COLUMNS_MAX];
	int failed;
};

#define NOTHING INT64_MIN /* what Slurm does not say */
#define NO_TEXT (-1)

void ext_free(struct ext_table *t)
{
	if (t->answer)
		t->release(t->answer);
	for (size_t i = 0; i < t->columns; i++)
		free(t->cells[i]);
	free(t->strings);
	*t = (struct ext_table){ 0 };
}

static int start(struct ext_table *t, size_t rows, size_t columns, void *answer, void (*release)(void *))
{
	*t = (struct ext_table){ .rows = rows, .columns = columns, .answer = answer, .release = release };
	for (size_t i = 0; i < columns; i++)
		if (!(t->cells[i] = calloc(rows ? rows : 1, sizeof(int64_t))))
			t->failed = 1;
	if ((t->strings = malloc(t->room = 4096))) {
		t->strings[0] = '\0';
		t->length = t->count = 1;
	} else
		t->failed = 1;
	return t->failed ? -1 : 0;
}

static int64_t text(struct ext_table *t, size_t column, const char *value)
{
	size_t size;

	if (!value)
		return NO_TEXT;
	if (!value[0])
		return 0;
	if (t->last[column] && strcmp(t->strings + t->last_at[column], value) == 0)
		return t->last[column];
	size = strlen(value) + 1;
	while (t->room - t->length < size) {
		char *more = realloc(t->strings, t->room * 2);

		if (!more) {
			t->failed = 1;
			return NO_TEXT;
		}
		t->strings = more;
		t->room *= 2;
	}
	memcpy(t->strings + t->length, value, size);
	t->last_at[column] = t->length;
	t->length += size;
	return t->last[column] = (int64_t)t->count++;
}

static void put(struct ext_table *t, size_t column, size_t row, int64_t value)
{
	t->cells[column][row] = value;
	t->gaps[column] |= value == NOTHING;
}

static int64_t u32(uint32_t value)
{
	return value == NO_VAL || value == INFINITE ? NOTHING : (int64_t)value;
}

static int64_t moment(time_t value)
{
	return value ? (int64_t)value : NOTHING;
}

#define PUT(value) put(t, c++, row, (value))
#define TEXT(value) (t->cells[c][row] = text(t, c, (value)), c++)

/* -- loading; the order of the columns is that of the classes in records.py */

static int finish(struct ext_table *t)
{
	if (!t->failed)
		return 0;
	ext_free(t);
	errno = ENOMEM;
	return -1;
}

static void release_jobs(void *answer)
{
	slurm_free_job_info_msg(answer);
}

/* `since`: in, when the answer was given that the caller has, or 0; out, when this one was. If nothing has changed, slurmctld
 * says just that: -1 and SLURM_NO_CHANGE_IN_DATA. It counts in seconds, and takes what changed in the same one for new. */
int ext_jobs(struct ext_table *t, uint32_t job, int64_t *since)
{
	job_info_msg_t *found = NULL;
	uint16_t flags = SHOW_ALL | SHOW_DETAIL;

	if (job ? slurm_load_job(&found, named(job), flags) : slurm_load_jobs((time_t)*since, &found, SHOW_ALL))
		return -1;
	*since = found->last_update;
	if (start(t, found->record_count, 25, found, release_jobs) == 0)
		for (size_t row = 0; row < t->rows; row++) {
			slurm_job_info_t *j = &found->job_array[row];
			size_t c = 0;

			PUT(j->job_id);
			TEXT(j->name);
			PUT(j->job_state);
			PUT(j->user_id);
			PUT(j->group_id);
			TEXT(j->partition);
			TEXT(j->account);
			TEXT(j->qos);
			TEXT(j->nodes);
			PUT(u32(j->num_nodes));
			PUT(u32(j->num_cpus));
			PUT(u32(j->num_tasks));
			PUT(u32(j->priority));
			PUT(u32(j->time_limit));
			PUT(moment(j->submit_time));
			PUT(moment(j->start_time));
			PUT(moment(j->end_time));
			PUT(j->state_reason);
			TEXT(j->comment);
			TEXT(j->work_dir);
			TEXT(j->command);
			PUT(j->array_job_id ? (int64_t)j->array_job_id : NOTHING);
			PUT(j->array_job_id ? u32(j->array_task_id) : NOTHING);
			PUT(j->restart_cnt);
			PUT(j->exit_code);
		}
	return finish(t);
}

static void release_nodes(void *answer)
{
	slurm_free_node_info_msg(answer);
}

int ext_nodes(struct ext_table *t, const char *name, int64_t *since)
{
	node_info_msg_t *found = NULL;
	uint16_t flags = SHOW_ALL | SHOW_DETAIL;

	if (name ? slurm_load_node_single(&found, (char *)name, flags) : slurm_load_node((time_t)*since, &found, flags))
		return -1;
	*since = found->last_update;
	if (start(t, found->record_count, 16, found, release_nodes) == 0)
		for (size_t row = 0; row < t->rows; row++) {
			node_info_t *n = &found->node_array[row];
			size_t c = 0;

			TEXT(n->name);
			PUT(n->node_state);
			PUT(n->cpus);
			PUT((int64_t)n->real_memory);
			PUT(n->free_mem == NO_VAL64 ? NOTHING : (int64_t)n->free_mem);
			PUT(u32(n->cpu_load));
			TEXT(n->gres);
			TEXT(n->gres_used);
			TEXT(n->features);
			TEXT(n->reason && n->reason[0] ? n->reason : NULL);
			PUT(n->reason && n->reason[0] ? u32(n->reason_uid) : NOTHING);
			PUT(n->reason && n->reason[0] ? moment(n->reason_time) : NOTHING);
			PUT(moment(n->boot_time));
			PUT(moment(n->slurmd_start_time));
			TEXT(n->node_hostname);
			TEXT(n->version);
		}
	return finish(t);
}

static void release_steps(void *answer)
{
	slurm_free_job_step_info_response_msg(answer);
}

int ext_steps(struct ext_table *t, uint32_t job)
{
	job_step_info_response_msg_t *found = NULL;

	if (load_steps(job ? job : NO_VAL, &found))
		return -1;
	if (start(t, found->job_step_count, 10, found, release_steps) == 0)
		for (size_t row = 0; row < t->rows; row++) {
			job_step_info_t *s = &found->job_steps[row];
			size_t c = 0;

			PUT(s->step_id.job_id);
			PUT(s->step_id.step_id);
			TEXT(s->name);
			PUT(s->state);
			PUT(s->user_id);
			TEXT(s->partition);
			TEXT(s->nodes);
			PUT(u32(s->num_tasks));
			PUT(u32(s->num_cpus));
			PUT(moment(s->start_time));
		}
	return finish(t);
}

static void release_partitions(void *answer)
{
	slurm_free_partition_info_msg(answer);
}

int ext_partitions(struct ext_table *t, int64_t *since)
{
	partition_info_msg_t *found = NULL;

	if (slurm_load_partitions((time_t)*since, &found, SHOW_ALL))
		return -1;
	*since = found->last_update;
	if (start(t, found->record_count, 8, found, release_partitions) == 0)
		for (size_t row = 0; row < t->rows; row++) {
			partition_info_t *p = &found->partition_array[row];
			size_t c = 0;

			TEXT(p->name);
			PUT(p->state_up);
			TEXT(p->nodes);
			PUT(p->total_nodes);
			PUT(p->total_cpus);
			PUT(u32(p->max_time));
			PUT(u32(p->default_time));
			PUT(!!(p->flags & PART_FLAG_DEFAULT));
		}
	return finish(t);
}

/* -- changing */

int ext_update_nodes(const char *names, int drain, const char *reason, uint32_t uid)
{
	update_node_msg_t update;

	slurm_init_update_node_msg(&update);
	update.node_names = (char *)names;
	update.node_state = drain ? NODE_STATE_DRAIN : NODE_RESUME;
	if (drain) {
		update.reason = (char *)reason;
		name_user(&update, uid);
	}
	return slurm_update_node(&update) ? -1 : 0;
}

int ext_requeue(uint32_t job, int hold)
{
	return slurm_requeue(named(job), hold ? JOB_REQUEUE_HOLD : 0) ? -1 : 0;
}

int ext_comment(uint32_t job, const char *comment)
{
	job_desc_msg_t update;

	slurm_init_job_desc_msg(&update);
	name_job(&update, job);
	update.comment = (char *)comment;
	return slurm_update_job(&update) ? -1 : 0;
}

/* -- host lists: the caller frees */

char *ext_expand(const char *list, size_t *count)
{
	hosts_t hosts = slurm_hostlist_create(list);
	size_t room = 4096, length = 0;
	char *out = malloc(room), *host;

	*count = 0;
	if (!hosts) {
		free(out);
		return NULL;
	}
	while (out && (host = slurm_hostlist_shift(hosts))) {
		size_t size = strlen(host) + 1;

		while (room - length < size) {
			char *more = realloc(out, room *= 2);

			if (!more) {
				free(out);
				out = NULL;
				break;
			}
			out = more;
		}
		if (out) {
			memcpy(out + length, host, size);
			length += size;
			++*count;
		}
		free(host);
	}
	slurm_hostlist_destroy(hosts);
	return out;
}

char *ext_compress(const char *list)
{
	hosts_t hosts = slurm_hostlist_create(list);
	size_t room = strlen(list) + 64;
	char *out = NULL, *more;

	if (!hosts)
		return NULL;
	slurm_hostlist_uniq(hosts);
	do {
		if (!(more = realloc(out, room *= 2)))
			free(out);
		out = more;
	} while (out && slurm_hostlist_ranged_string(hosts, room, out) < 0);
	slurm_hostlist_destroy(hosts);
	return out;
}

/* -- names */

const char *ext_job_state(uint32_t state)
{
	return slurm_job_state_string(state);
}

const char *ext_job_reason(int reason)
{
	return slurm_job_reason_string(reason);
}

/* -- beginning */

int ext_version(void)
{
	return (int)SLURM_VERSION_NUMBER;
}

/* A large answer is tens of megabytes in small blocks, for a moment. glibc gives such memory back and asks for it again
 * each time, until it has seen a large block freed: this is about the largest that it learns from (mallopt(3)). */
static void keep_memory(void)
{
	void *volatile block = malloc((32 << 20) - 65536);

	free(block);
}

/* libslurm ends the process when it does not like slurm.conf. So a child tries first, and says so with a NUL when it
 * lived; returns -1 with what libslurm printed in `said` where there was none. Whether the child can still be waited for
 * is not asked: the program may have SIGCHLD ignored. */
int ext_init(char *said, size_t size)
{
	int ends[2], lived = 0;
	size_t length = 0;
	ssize_t n;
	pid_t child;

	said[0] = '\0';
	if (pipe2(ends, O_CLOEXEC) < 0)
		return -1;
	if ((child = fork()) < 0) {
		close(ends[0]);
		close(ends[1]);
		return -1;
	}
	if (child == 0) {
		dup2(ends[1], STDERR_FILENO);
		slurm_init(NULL);
		_exit(write(ends[1], "", 1) == 1 ? 0 : 1);
	}
	close(ends[1]);
	while ((n = read(ends[0], said + length, size - length - 1)) > 0 || (n < 0 && errno == EINTR)) {
		length += n > 0 ? (size_t)n : 0;
		if (length + 1 == size)	/* what it said last is of interest */
			length = 0;
		else
			lived = length && said[length - 1] == '\0';
	}
	said[length] = '\0';
	close(ends[0]);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	if (!lived)
		return -1;
	slurm_init(NULL);
	keep_memory();
	return 0;
}
