/* entry.c - the program that stands in front of a user's command in a container with an entrypoint or with variables
 * that each task has for itself, and in front of a task prolog in any container (launcher.c). Linked statically: the
 * image may have no libc at all. Where the user is root (remap_root), which root's own steps are in no container, it puts
 * the filter on them that answers "done" to what only a root of all ids could do (system/pretendroot.py).
 *
 * The plugin can replace argv[0] but not lengthen argv, so it puts this program there and the replaced
 * word into PIOLET_ARGV0. We exec: the entrypoint's words, then that word, then the rest. The words
 * are NUL-terminated in one file next to us, what is to be done before in another:
 *   =NAME=OTHER  NAME becomes what OTHER is    ^NAME=OTHER  the first name of the host list OTHER
 *   ?NAME=OTHER  the same, where NAME is not set            ~NAME=OTHER  likewise        !text  the first task says it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define WORDS_FILE "/run/piolet/entrypoint"
#define TASK_FILE "/run/piolet/task"
#define ATTACHED "/./"	/* called by such a path, there is no entrypoint: the container's own tasks have run it */
#define FILTER_FILE "/run/piolet/filter"
#define BYTES_MAX 65536
#define WORDS_MAX 1024

#define NO_ENTRYPOINT "hint: set entrypoint = false in the environment file\n"

static int give_up(const char *what, const char *which, const char *why, const char *hint)
{
	dprintf(STDERR_FILENO, "piolet: error: cannot run %s%s: %s\n%s", what, which, why, hint);
	return 127;
}

static int pretend_root(void)
{
	static struct sock_filter code[128];
	int fd = open(FILTER_FILE, O_RDONLY | O_CLOEXEC);
	ssize_t length = read(fd, code, sizeof(code));
	struct sock_fprog program = { .len = length > 0 ? length / sizeof(*code) : 0, .filter = code };

	return fd < 0 ? 0 : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

/* slurmstepd slurm_script_launcher PATH WORD...: what slurmstepd does for a script, of which it is told the same way. */
static int launch(char **argv)
{
	closefrom(STDERR_FILENO + 1);
	setpgid(0, 0);
	execv(argv[2], argv + 3);
	return give_up(argv[2], " in the container", strerror(errno), "");
}

/* Returns how much of a file of NUL-terminated words was read, 0 if it is not there, or -1. */
static ssize_t words_of(const char *path, char *bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? (errno == ENOENT ? 0 : -1) : read(fd, bytes, BYTES_MAX);

	if (fd >= 0)
		close(fd);
	return length > 0 && (length == BYTES_MAX || bytes[length - 1]) ? -1 : length;
}

/* Of "gpu[08-10,12]-x,login1": "gpu08-x". */
static const char *first_host(const char *list)
{
	static char host[256];
	size_t length = 0;

	for (; *list && *list != ',' && length < sizeof(host) - 1; list++) {
		if (*list != '[') {
			host[length++] = *list;
			continue;
		}
		for (list++; *list && !strchr("-,]", *list) && length < sizeof(host) - 1; list++)
			host[length++] = *list;
		list += strcspn(list, "]");
		if (!*list)
			break;
	}
	host[length] = '\0';
	return host;
}

static void prepare(char *line)
{
	char *name = line + 1, *other = strchr(name, '=');
	const char *task = getenv("SLURM_PROCID"), *value;

	if (*line == '!' && task && strcmp(task, "0") == 0)
		dprintf(STDERR_FILENO, "piolet: warning: node %s: %s\n", getenv("SLURMD_NODENAME") ?: "?", name);
	if (*line == '!' || !other)
		return;
	*other++ = '\0';
	value = getenv(other);
	if (value)
		setenv(name, *line == '^' || *line == '~' ? first_host(value) : value, *line == '=' || *line == '^');
}

int main(int argc, char **argv)
{
	static char bytes[BYTES_MAX], lines[BYTES_MAX];
	const char *zero = getenv("PIOLET_ARGV0");
	char **words = calloc((size_t)argc + WORDS_MAX + 1, sizeof(*words));
	ssize_t length = strstr(argv[0], ATTACHED) ? 0 : words_of(WORDS_FILE, bytes), prepared = words_of(TASK_FILE, lines);
	int count = 0;

	if (getuid() == 0 && pretend_root() < 0)
		return give_up("tasks as root", "", strerror(errno), "hint: set remap_root = false in the environment file\n");
	if (argc > 3 && strcmp(argv[1], "slurm_script_launcher") == 0)
		return launch(argv);
	if (length < 0 || prepared < 0 || (length + prepared == 0 && getuid() != 0))
		return give_up("the image's entrypoint: ", WORDS_FILE, "malformed", NO_ENTRYPOINT);
	if (!words || !zero)
		return give_up("the image's entrypoint: ", "PIOLET_ARGV0", words ? "not set" : "out of memory", NO_ENTRYPOINT);
	for (char *line = lines, *next; line < lines + prepared; line = next) {
		next = strchr(line, '\0') + 1;
		prepare(line);
	}
	for (char *word = bytes; word < bytes + length && count < WORDS_MAX; word += strlen(word) + 1)
		words[count++] = word;
	words[count++] = strdup(zero);
	unsetenv("PIOLET_ARGV0");
	for (int i = 1; i < argc; i++)
		words[count++] = argv[i];
	execvp(words[0], words);
	return length ? give_up("the image's entrypoint: ", words[0], strerror(errno), NO_ENTRYPOINT) :
	       give_up(words[0], " in the container", strerror(errno), "");
}
