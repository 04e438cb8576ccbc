/* entry.c - the program that stands in front of a user's command in a container with an entrypoint, and in front of
 * a task prolog in any container (launcher.c). Linked statically: the image may have no libc at all.
 *
 * The plugin can replace argv[0] but not lengthen argv, so it puts this program there and the replaced
 * word into PIOLET_ARGV0. We exec: the entrypoint's words, then that word, then the rest. The words
 * are NUL-terminated in the file next to us.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORDS_FILE "/run/piolet/entrypoint"
#define BYTES_MAX 65536
#define WORDS_MAX 1024

static int give_up(const char *what, const char *why)
{
	dprintf(STDERR_FILENO, "piolet: error: cannot run the image's entrypoint: %s: %s\n"
		"hint: set entrypoint = false in the environment file\n", what, why);
	return 127;
}

/* slurmstepd slurm_script_launcher PATH WORD...: what slurmstepd does for a script, of which it is told the same way. */
static int launch(char **argv)
{
	closefrom(STDERR_FILENO + 1);
	setpgid(0, 0);
	execv(argv[2], argv + 3);
	dprintf(STDERR_FILENO, "piolet: error: cannot run %s in the container: %s\n", argv[2], strerror(errno));
	return 127;
}

int main(int argc, char **argv)
{
	static char bytes[BYTES_MAX];
	const char *zero = getenv("PIOLET_ARGV0");
	char **words = calloc((size_t)argc + WORDS_MAX + 1, sizeof(*words));
	int fd = open(WORDS_FILE, O_RDONLY | O_CLOEXEC), count = 0;
	ssize_t length = fd < 0 ? -1 : read(fd, bytes, sizeof(bytes));

	if (argc > 3 && strcmp(argv[1], "slurm_script_launcher") == 0)
		return launch(argv);
	if (length <= 0 || length == BYTES_MAX || bytes[length - 1])
		return give_up(WORDS_FILE, length < 0 ? strerror(errno) : "malformed");
	if (!words || !zero)
		return give_up("PIOLET_ARGV0", words ? "not set" : "out of memory");
	for (char *word = bytes; word < bytes + length && count < WORDS_MAX; word += strlen(word) + 1)
		words[count++] = word;
	words[count++] = strdup(zero);
	unsetenv("PIOLET_ARGV0");
	for (int i = 1; i < argc; i++)
		words[count++] = argv[i];
	execvp(words[0], words);
	return give_up(words[0], strerror(errno));
}
