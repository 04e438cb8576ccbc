/* vet_task.c - the program that a vet step runs, one task on each node.
 *
 * It takes the plan from SLURM_PIOLET_VET, hands it to the node's pioletd, and prints what comes back, a line a
 * message, until the connection ends. What comes on its standard input, which are the orders for meetings of several
 * nodes, it hands on as it is. It starts in a millisecond and needs no Python: that is all waiting there,
 * warm. Its end, however it comes, ends the vetting on this node.
 *
 *     piolet-vet-task SOCKET [decision]
 *
 * With `decision` the variable has what srun made of a vetting instead, which pioletd takes without an answer.
 *
 * Exit status: 0 when pioletd had all its say; 1 with a sentence on stderr otherwise.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PLAN_VARIABLE "SLURM_PIOLET_VET"
#define LINE_MAX_BYTES 262144
#define ORDERS_MAX_BYTES 32768

static int say(const struct failure *f)
{
	dprintf(STDERR_FILENO, "piolet: error: %s%s%s\n", f->message, f->hint[0] ? "\nhint: " : "", f->hint);
	return 1;
}

static int print_all(const char *bytes, size_t length)
{
	while (length) {
		ssize_t n = write(STDOUT_FILENO, bytes, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		bytes += n;
		length -= (size_t)n;
	}
	return 0;
}

/* Hands on what came on standard input, in order: `rest` bytes of `orders` did not go yet. False: nothing more can. */
static bool hand_on(int fd, char *orders, size_t *rest)
{
	ssize_t n;

	if (!*rest) {
		n = read(STDIN_FILENO, orders, ORDERS_MAX_BYTES);
		if (n <= 0)
			return n < 0 && errno == EINTR;
		*rest = (size_t)n;
	}
	n = send(fd, orders, *rest, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n == (ssize_t)*rest)
		*rest = 0;
	return n >= 0 || errno == EAGAIN || errno == EINTR;
}

/* Waits until there is something to receive, and hands on orders meanwhile. */
static void wait_for_line(int fd)
{
	static char orders[ORDERS_MAX_BYTES];
	static size_t rest;
	static bool open_input = true;
	struct pollfd both[2] = { { .fd = fd }, { .events = POLLIN } };

	do {
		both[0].events = (short)(POLLIN | (rest ? POLLOUT : 0));
		both[1].fd = open_input && !rest ? STDIN_FILENO : -1;
		both[1].revents = 0;
		if (poll(both, 2, -1) < 0)
			return;
		if (both[1].revents || (rest && both[0].revents & POLLOUT))
			open_input = hand_on(fd, orders, &rest);
	} while (!(both[0].revents & (POLLIN | POLLHUP | POLLERR)));
}

int main(int argc, char **argv)
{
	static _Alignas(8) char message[LINE_MAX_BYTES];
	uint16_t kind = argc == 3 ? PIOLET_DECISION : PIOLET_VET;
	struct piolet_vet vet = { .header = { PIOLET_MAGIC, PIOLET_VERSION, kind, 0, 0 } };
	struct piolet_error error;
	const char *plan = getenv(PLAN_VARIABLE);
	struct failure f = { 0 };
	int fd, broken = 0;

	if (argc < 2 || argc > 3 || !plan || !plan[0] || strlen(plan) > PIOLET_DEFINITION_MAX) {
		fail(&f, "use srun --vet=PROTOCOL", "this program is run by a vet step, with a plan in " PLAN_VARIABLE);
		return say(&f);
	}
	vet.plan = (uint32_t)strlen(plan);
	vet.header.length = (uint32_t)sizeof(vet) + vet.plan;
	memcpy(message, &vet, sizeof(vet));
	memcpy(message + sizeof(vet), plan, vet.plan);
	fd = channel_open(argv[1], &f);
	if (fd < 0 || channel_send(fd, message, vet.header.length, &f) < 0)
		return say(&f);
	for (;;) {
		ssize_t n;

		wait_for_line(fd);
		n = recv(fd, message, sizeof(message), MSG_DONTWAIT);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		/* A reset is told before what was sent ahead of it: pioletd may have said why. */
		if (n < 0 && !broken) {
			broken = errno;
			continue;
		}
		if (n <= 0 && broken) {
			fail(&f, "look at the log of pioletd.service on that node", "the connection to pioletd broke: %s",
			     strerror(broken));
			return say(&f);
		}
		if (n == 0)
			break;
		memcpy(&error, message, (size_t)n < sizeof(error) ? (size_t)n : sizeof(error));
		if ((size_t)n == sizeof(error) && error.header.magic == PIOLET_MAGIC) {
			error.message[sizeof(error.message) - 1] = error.hint[sizeof(error.hint) - 1] = '\0';
			fail(&f, error.hint, "%s", error.message);
			return say(&f);
		}
		if (print_all(message, (size_t)n) < 0)
			return 1;
	}
	return 0;
}
