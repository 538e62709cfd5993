/* Put before libssl (LD_PRELOAD), makes wrk begin each TLS connection with a whole handshake, as curl does: wrk itself
   resumes the session of the connection before. */
#define _GNU_SOURCE
#include <dlfcn.h>

int SSL_clear(void *connection)
{
    int (*clear)(void *) = (int (*)(void *))dlsym(RTLD_NEXT, "SSL_clear");
    int (*set_session)(void *, void *) = (int (*)(void *, void *))dlsym(RTLD_NEXT, "SSL_set_session");

    set_session(connection, 0);
    return clear(connection);
}
