#include "pool_shim.h"
#include "apr_poll.h"
#include "apr_portable.h"
#include "http_connection.h"
#include "http_core.h"
#include "http_protocol.h"
#include "http_request.h"

extern module pool_module;
APLOG_USE_MODULE(pool);

void pool_shim_log_server(int level, apr_status_t status, const server_rec *s, const char *text)
{
    ap_log_error(APLOG_MARK, level, status, s, "%s", text);
}

void pool_shim_log_request(int level, apr_status_t status, const request_rec *r, const char *text)
{
    ap_log_rerror(APLOG_MARK, level, status, r, "%s", text);
}

void pool_shim_log_startup(int level, apr_status_t status, const char *text)
{
    ap_log_error(APLOG_MARK, level | APLOG_STARTUP, status, NULL, "%s", text);
}

void pool_shim_log_request_as(const char *file, int line, int module_index, int level, apr_status_t status,
                              const request_rec *r, const char *text)
{
    ap_log_rerror_(file, line, module_index, level, status, r, "%s", text);
}

void pool_shim_log_server_as(int module_index, int level, const server_rec *s, const char *text)
{
    ap_log_error_(NULL, 0, module_index, level, 0, s, "%s", text);
}

void pool_shim_brigade_insert_tail(apr_bucket_brigade *bb, apr_bucket *b)
{
    APR_BRIGADE_INSERT_TAIL(bb, b);
}

void pool_shim_brigade_concat(apr_bucket_brigade *a, apr_bucket_brigade *b)
{
    APR_BRIGADE_CONCAT(a, b);
}

apr_bucket *pool_shim_brigade_first(apr_bucket_brigade *bb)
{
    return APR_BRIGADE_EMPTY(bb) ? NULL : APR_BRIGADE_FIRST(bb);
}

apr_bucket *pool_shim_bucket_next(apr_bucket_brigade *bb, apr_bucket *b)
{
    apr_bucket *next = APR_BUCKET_NEXT(b);

    return next == APR_BRIGADE_SENTINEL(bb) ? NULL : next;
}

void pool_shim_bucket_delete(apr_bucket *b)
{
    apr_bucket_delete(b);
}

apr_status_t pool_shim_bucket_read(apr_bucket *b, const char **data, apr_size_t *len, apr_read_type_e block)
{
    return apr_bucket_read(b, data, len, block);
}

int pool_shim_bucket_kind(const apr_bucket *b)
{
    if (APR_BUCKET_IS_FILE(b))
        return POOL_BUCKET_FILE;
    if (!APR_BUCKET_IS_METADATA(b))
        return POOL_BUCKET_DATA;
    if (APR_BUCKET_IS_EOS(b))
        return POOL_BUCKET_EOS;
    if (APR_BUCKET_IS_FLUSH(b))
        return POOL_BUCKET_FLUSH;
    if (AP_BUCKET_IS_EOR(b))
        return POOL_BUCKET_EOR;
    if (AP_BUCKET_IS_EOC(b))
        return POOL_BUCKET_EOC;
    if (AP_BUCKET_IS_ERROR(b))
        return POOL_BUCKET_ERROR;
    return POOL_BUCKET_METADATA;
}

int pool_shim_bucket_error_status(const apr_bucket *b)
{
    return ((const ap_bucket_error *)b->data)->status;
}

/* The place of a request's output filters while its body is read. */
static apr_status_t keep_refusal(ap_filter_t *f, apr_bucket_brigade *bb)
{
    apr_bucket *b;

    for (b = APR_BRIGADE_FIRST(bb); b != APR_BRIGADE_SENTINEL(bb); b = APR_BUCKET_NEXT(b)) {
        if (AP_BUCKET_IS_ERROR(b))
            *(int *)f->ctx = ((ap_bucket_error *)b->data)->status;
    }
    apr_brigade_cleanup(bb);
    return AP_FILTER_ERROR;
}

apr_status_t pool_shim_read_body(request_rec *r, apr_bucket_brigade *bb, apr_off_t limit, int *refused)
{
    static ap_filter_rec_t rec = { .name = "pool_refusal", .filter_func = { .out_func = keep_refusal } };
    ap_filter_t keeper = { .frec = &rec, .ctx = refused }, *chain = r->output_filters;
    apr_status_t rv;

    r->output_filters = &keeper;
    rv = ap_get_brigade(r->input_filters, bb, AP_MODE_READBYTES, APR_NONBLOCK_READ, limit);
    r->output_filters = chain;
    return rv;
}

int pool_shim_stream_input(conn_rec *c)
{
#if AP_MODULE_MAGIC_AT_LEAST(20120211, 129)
    apr_pollfd_t pfd = { 0 };
    apr_os_file_t fd;

    if (ap_get_pollfd_from_conn(c, &pfd, NULL) == APR_SUCCESS && pfd.desc_type == APR_POLL_FILE
        && apr_os_file_get(&fd, pfd.desc.f) == APR_SUCCESS)
        return fd;
#endif
    return -1;
}

apr_file_t *pool_shim_bucket_file(const apr_bucket *b)
{
    return ((const apr_bucket_file *)b->data)->fd;
}

int pool_shim_total_modules(void)
{
    int n = 0;
    module *m;

    /* ap_merge_per_dir_configs copies as many; the list is what is public of that number. */
    for (m = ap_top_module; m; m = m->next) {
        if (m->module_index >= n)
            n = m->module_index + 1;
    }
    return n;
}

void *pool_shim_ssl_options_record(apr_pool_t *p, server_rec *s)
{
    module *ssl = ap_find_linked_module("mod_ssl.c");
    const command_rec *cmd;
    cmd_parms parms = { 0 };
    void *record;

    if (!ssl || !ssl->create_dir_config || !ssl->cmds)
        return NULL;
    for (cmd = ssl->cmds; cmd->name && strcasecmp(cmd->name, "SSLOptions"); cmd++);
    if (!cmd->name || cmd->args_how != RAW_ARGS)
        return NULL;
    record = ssl->create_dir_config(p, NULL);
    parms.pool = parms.temp_pool = p;
    parms.server = s;
    parms.cmd = cmd;
    parms.override = OR_ALL;
    if (cmd->AP_RAW_ARGS(&parms, record, "+StdEnvVars +ExportCertData"))
        return NULL;
    return record;
}

const char *pool_shim_apply_directive(apr_pool_t *p, server_rec *s, const char *file, const char *name,
                                      const char *arg)
{
    module *m = ap_find_linked_module(file);
    ap_directive_t nowhere = { 0 };
    const command_rec *cmd;
    cmd_parms parms = { 0 };
    const char *message;

    if (!m || !m->cmds)
        return "its module is not loaded";
    for (cmd = m->cmds; cmd->name && strcasecmp(cmd->name, name); cmd++);
    if (!cmd->name || (cmd->args_how != RAW_ARGS && cmd->args_how != TAKE1))
        return "its module has no such directive";
    parms.pool = p;
    apr_pool_create(&parms.temp_pool, p);
    parms.server = s;
    parms.cmd = cmd;
    parms.directive = &nowhere;
    parms.limited = -1;
    parms.override = OR_ALL | RSRC_CONF;
    message = cmd->args_how == RAW_ARGS ? cmd->AP_RAW_ARGS(&parms, NULL, arg) : cmd->AP_TAKE1(&parms, NULL, arg);
    apr_pool_destroy(parms.temp_pool);
    return message;
}

apr_status_t pool_shim_thread_create(apr_thread_t **thread, apr_threadattr_t *attr, apr_thread_start_t body,
                                     void *data, apr_pool_t *p)
{
    return ap_thread_create(thread, attr, body, data, p);
}

void pool_shim_thread_after_fork(void)
{
#if AP_HAS_THREAD_LOCAL
    ap_thread_current_after_fork();
#endif
}

apr_status_t pool_shim_thread_main_create(apr_pool_t *p)
{
#if AP_HAS_THREAD_LOCAL
    apr_thread_t *thread = NULL;

    return ap_thread_main_create(&thread, p);
#else
    return APR_SUCCESS;
#endif
}
