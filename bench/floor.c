/* The physical floor: what the kernel alone takes for a delivery.
 *
 * A WebSocket server on epoll that does as little as possible: it answers the handshake, answers a client's first frame
 * with a canned reply, and sends every line of its standard input to every connection as one text frame, with one
 * send(2) each. No tokens, no channels, no pings. It answers one handshake key only, the one that bench/load.py sends.
 *
 *     cc -O2 -o floor floor.c && ./floor PORT        says "ready" on stdout
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, MOST = 1 << 16, LINE = 1 << 16 };
enum phase { HANDSHAKE = 1, FIRST_FRAME, LIVE };

static const char UPGRADE[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static const char REPLY[] = "{\"id\":1,\"connect\":{\"client\":\"floor\"}}\n{\"id\":2,\"subscribe\":{}}";

static int live[MOST], place[MOST], lives;
static unsigned char phase[MOST];
static int epoll;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static size_t frame(char *out, const char *text, size_t size) {
    out[0] = (char)0x81;
    if (size < 126) {
        out[1] = (char)size;
        memcpy(out + 2, text, size);
        return size + 2;
    }
    out[1] = 126;
    out[2] = (char)(size >> 8);
    out[3] = (char)size;
    memcpy(out + 4, text, size);
    return size + 4;
}

/* Whole or not at all: a full socket is waited for, so that each delivery arrives. */
static void send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent >= 0) {
            data += sent;
            size -= (size_t)sent;
        } else if (errno == EAGAIN) {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            if (poll(&wait, 1, 5000) <= 0) return;
        } else if (errno != EINTR) {
            return;
        }
    }
}

static void leave(int fd) {
    if (phase[fd] == LIVE) {
        live[place[fd]] = live[--lives];
        place[live[place[fd]]] = place[fd];
    }
    phase[fd] = 0;
    close(fd);
}

static void admit(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (fd >= MOST) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        phase[fd] = HANDSHAKE;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    }
}

static void hear(int fd) {
    static char data[LINE], reply[512];
    ssize_t size = recv(fd, data, sizeof data, 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) {
        leave(fd);
    } else if (phase[fd] == HANDSHAKE) {
        if (size < 4 || memcmp(data + size - 4, "\r\n\r\n", 4)) return;
        phase[fd] = FIRST_FRAME;
        send_all(fd, UPGRADE, sizeof UPGRADE - 1);
    } else if (phase[fd] == FIRST_FRAME) {
        phase[fd] = LIVE;
        place[fd] = lives;
        live[lives++] = fd;
        send_all(fd, reply, frame(reply, REPLY, sizeof REPLY - 1));
    }
}

static void publish(const char *line, size_t size) {
    static char out[LINE + 8];
    size_t length = frame(out, line, size);
    for (int i = 0; i < lives; i++) send_all(live[i], out, length);
}

/* Lines may come in pieces and several at once. */
static int obey(void) {
    static char held[LINE];
    static size_t have;
    ssize_t size = read(0, held + have, sizeof held - have);
    if (size <= 0) return 0;
    have += (size_t)size;
    char *start = held, *end;
    while ((end = memchr(start, '\n', have - (size_t)(start - held)))) {
        publish(start, (size_t)(end - start));
        start = end + 1;
    }
    have -= (size_t)(start - held);
    memmove(held, start, have);
    return have < sizeof held;
}

static int listening(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) die("listen");
    return fd;
}

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "floor PORT\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listening(atoi(arguments[1]));
    watch(listener);
    watch(0);
    puts("ready");
    fflush(stdout);
    for (struct epoll_event events[EVENTS];;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                admit(listener);
            } else if (fd) {
                hear(fd);
            } else if (!obey()) {
                return 0;
            }
        }
    }
}
