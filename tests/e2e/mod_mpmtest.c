/* What no stock module does to its MPM: asks to be called at a time in child_init; gives a connection back in the moment
 * in which it is suspended (client 127.0.0.3); refuses a connection (client 127.0.0.4). */

#include "httpd.h"
#include "http_config.h"
#include "http_connection.h"
#include "http_log.h"
#include "http_main.h"
#include "ap_mpm.h"
#include "mpm_common.h"

module AP_MODULE_DECLARE_DATA mpmtest_module;
APLOG_USE_MODULE(mpmtest);

static int is_from(conn_rec *c, const char *address)
{
    return !c->master && !strcmp(c->client_ip, address);
}

static void called(void *data)
{
    ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, ap_server_conf, "mpmtest: called");
}

static void child_init(apr_pool_t *pool, server_rec *s)
{
    apr_status_t rv = ap_mpm_register_timed_callback(apr_time_from_msec(50), called, NULL);
    ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, s, "mpmtest: registered with %d", (int)rv);
}

static int pre_connection(conn_rec *c, void *csd)
{
    return is_from(c, "127.0.0.4") ? HTTP_FORBIDDEN : DECLINED;
}

static int pre_close(conn_rec *c)
{
    if (is_from(c, "127.0.0.4"))
        ap_log_cerror(APLOG_MARK, APLOG_NOTICE, 0, c, "mpmtest: refused, aborted is %d", (int)c->aborted);
    return OK;
}

static int process(conn_rec *c)
{
    if (!is_from(c, "127.0.0.3"))
        return DECLINED;
    c->cs->state = CONN_STATE_SUSPENDED;
    return OK;
}

static void suspend(conn_rec *c, request_rec *r)
{
    if (is_from(c, "127.0.0.3") && c->cs->state == CONN_STATE_SUSPENDED) {
        c->keepalive = AP_CONN_CLOSE;
        c->cs->state = CONN_STATE_WRITE_COMPLETION;
    }
}

static void hooks(apr_pool_t *pool)
{
    ap_hook_child_init(child_init, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_pre_connection(pre_connection, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_pre_close_connection(pre_close, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_process_connection(process, NULL, NULL, APR_HOOK_FIRST);
    ap_hook_suspend_connection(suspend, NULL, NULL, APR_HOOK_MIDDLE);
}

module AP_MODULE_DECLARE_DATA mpmtest_module = { STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, hooks };
