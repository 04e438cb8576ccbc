/* channel.c - the connection between slurmstepd and pioletd.
 *
 * One SOCK_SEQPACKET connection per step. slurmstepd opens it and sends START; its tasks inherit it
 * and peek at the one answer. A daemon that is down, slow or gone is an error with a bound, never a hang.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* connect and send block only while pioletd's queue is full; then this long at most. */
#define QUEUE_WAIT_S 2

int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int channel_open(const char *path, struct failure *f)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval wait = { .tv_sec = QUEUE_WAIT_S };
	int fd;

	if (strlen(path) >= sizeof(address.sun_path))
		return fail(f, "choose a shorter socket= in plugstack.conf", "the socket path %s is too long", path);
	memcpy(address.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail(f, NULL, "cannot make a socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int error = errno;

		close(fd);
		if (error == EAGAIN)
			return fail(f, "look at the log of pioletd.service on that node",
				    "pioletd takes no connection on %s after %d seconds", path, QUEUE_WAIT_S);
		return fail(f, "an administrator starts it with: systemctl start pioletd.service",
			    "pioletd.service does not run on this node (%s: %s)", path, strerror(error));
	}
	return fd;
}

int channel_send(int fd, const char *message, size_t length, struct failure *f)
{
	ssize_t sent;

	do
		sent = send(fd, message, length, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent != (ssize_t)length)
		return fail(f, "look at the log of pioletd.service on that node",
			    "pioletd did not take the step's definition: %s", sent < 0 ? strerror(errno) : "cut short");
	return 0;
}

/* Closes what is open, and marks it as closed. */
void channel_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void reply_close(struct reply *reply)
{
	int *slots[REPLY_DESCRIPTORS] = { &reply->user_ns, &reply->mount_ns, &reply->environment };

	for (size_t i = 0; i < REPLY_DESCRIPTORS; i++)
		channel_close(slots[i]);
}

/* Reads the answer and leaves it in the queue for the step's other tasks. */
int channel_peek(int fd, int64_t deadline_ms, struct reply *reply, struct failure *f)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * 16)];
	} control;
	struct iovec bytes = { reply->bytes, sizeof(reply->bytes) };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1 };
	int descriptors[16];
	size_t count = 0;
	ssize_t length;

	reply->ready = NULL;
	reply->user_ns = reply->mount_ns = reply->environment = -1;
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		int64_t left = deadline_ms - now_ms();
		int ready = poll(&p, 1, left > 0 ? (int)left : 0);

		if (ready == 0)
			return fail(f, "look at the log of pioletd.service on that node",
				    "pioletd did not make the environment ready in time");
		if (ready < 0 && errno == EINTR)
			continue;
		if (ready < 0)
			return fail(f, NULL, "cannot wait for pioletd: %s", strerror(errno));
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		length = recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (length >= 0 || (errno != EINTR && errno != EAGAIN))
			break;
	}
	if (length <= 0)
		return fail(f, "look at the log of pioletd.service on that node; the step can be started again",
			    "pioletd ended before the environment was ready");
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

			for (size_t i = 0; i < n && count < 16; i++)
				memcpy(&descriptors[count++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
		}
	if (count > REPLY_DESCRIPTORS || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		while (count)
			close(descriptors[--count]);
		return fail(f, NULL, "pioletd answered with more than a message may hold");
	}
	if (reply_decode(reply, (size_t)length, descriptors, count, f) < 0) {
		reply_close(reply);
		return -1;
	}
	return 0;
}
