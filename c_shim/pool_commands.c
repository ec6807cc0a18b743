#include "pool_shim.h"

/*
 * Where a directive may stand, as docs/directives.md words it. The handler checks it: what httpd says of a wrong place
 * has no remedy. None may stand in .htaccess; the handlers refuse that too.
 */
#define ANYWHERE             (RSRC_CONF | ACCESS_CONF | OR_ALL)
#define IN_SERVER            ANYWHERE                   /* server config */
#define IN_SERVER_OR_POOL    ANYWHERE                   /* server config, server pool */
#define IN_POOL              ANYWHERE                   /* server pool */
#define IN_ASSIGNABLE        ANYWHERE                   /* server config, virtual host, Location, If */

#define ARGS0 cmd_parms *cmd, void *dir
#define ARGS1 ARGS0, const char *a
#define ARGS2 ARGS1, const char *b

/* In src/entry/directives.rs. */
const char *pool_entry_server_pool(ARGS1);
const char *pool_entry_pool_user(ARGS1);
const char *pool_entry_pool_group(ARGS1);
const char *pool_entry_pool_max_processes(ARGS1);
const char *pool_entry_pool_min_spare(ARGS1);
const char *pool_entry_pool_idle_timeout(ARGS1);
const char *pool_entry_pool_max_requests(ARGS1);
const char *pool_entry_pool_queue_timeout(ARGS1);
const char *pool_entry_pool_request_timeout(ARGS1);
const char *pool_entry_pool_kill_grace(ARGS1);
const char *pool_entry_pool_queue_limit(ARGS1);
const char *pool_entry_pool_max_parked(ARGS1);
const char *pool_entry_pool_max_frontend_threads(ARGS1);
const char *pool_entry_pool_env(ARGS2);
const char *pool_entry_pool_umask(ARGS1);
const char *pool_entry_pool_module_role(ARGS2);
const char *pool_entry_pool_strict(ARGS0, int on);
const char *pool_entry_assign_server_pool(ARGS2);
const char *pool_entry_ssl_options(ARGS1);
const char *pool_entry_ssl_require(ARGS1);
const char *pool_entry_ssl_verify(ARGS1);
const char *pool_entry_ssl_user_name(ARGS1);
const char *pool_entry_php_ini_dir(ARGS1);
const char *pool_entry_fcgid_check(ARGS1);
const char *pool_entry_wsgi_check(ARGS1);


/* In src/entry/mpm_hooks.rs. */
const char *pool_entry_pool_mpm(ARGS0, int on);
const char *pool_entry_mpm_number(ARGS1);
const char *pool_entry_mpm_httpd(ARGS1);
const char *pool_entry_mpm_listen(ARGS0, int argc, char *const argv[]);

const command_rec pool_shim_commands[] = {
    AP_INIT_RAW_ARGS("<ServerPool", pool_entry_server_pool, NULL, IN_SERVER_OR_POOL,
        "Defines a server pool: the name, then its directives and sub pools"),
    AP_INIT_TAKE1("PoolUser", pool_entry_pool_user, NULL, IN_POOL,
        "The user that the pool's processes run as: a name or #uid"),
    AP_INIT_TAKE1("PoolGroup", pool_entry_pool_group, NULL, IN_POOL,
        "The group that the pool's processes run as: a name or #gid"),
    AP_INIT_TAKE1("PoolMaxProcesses", pool_entry_pool_max_processes, NULL, IN_SERVER_OR_POOL,
        "The most processes that the pool and its sub pools have at a time"),
    AP_INIT_TAKE1("PoolMinSpare", pool_entry_pool_min_spare, NULL, IN_SERVER_OR_POOL,
        "Idle processes that the pool keeps ready"),
    AP_INIT_TAKE1("PoolIdleTimeout", pool_entry_pool_idle_timeout, NULL, IN_SERVER_OR_POOL,
        "How long an idle process of the pool is kept"),
    AP_INIT_TAKE1("PoolMaxRequestsPerProcess", pool_entry_pool_max_requests, NULL, IN_SERVER_OR_POOL,
        "How many requests a process of the pool serves before it is replaced, 0 for any number"),
    AP_INIT_TAKE1("PoolQueueTimeout", pool_entry_pool_queue_timeout, NULL, IN_SERVER_OR_POOL,
        "How long a request waits for a process of the pool"),
    AP_INIT_TAKE1("PoolRequestTimeout", pool_entry_pool_request_timeout, NULL, IN_SERVER_OR_POOL,
        "How long a request may take once a process of the pool has it"),
    AP_INIT_TAKE1("PoolKillGrace", pool_entry_pool_kill_grace, NULL, IN_SERVER_OR_POOL,
        "How long a process whose request took longer than PoolRequestTimeout has for its end"),
    AP_INIT_TAKE1("PoolQueueLimit", pool_entry_pool_queue_limit, NULL, IN_SERVER_OR_POOL,
        "How many requests wait for a process of the pool"),
    AP_INIT_TAKE1("PoolMaxParked", pool_entry_pool_max_parked, NULL, IN_SERVER_OR_POOL,
        "How many requests of the pool wait without a thread in each frontend process"),
    AP_INIT_TAKE1("PoolMaxFrontendThreads", pool_entry_pool_max_frontend_threads, NULL, IN_SERVER_OR_POOL,
        "How many threads of each frontend process may be with requests of the pool for more than a second"),
    AP_INIT_TAKE12("PoolEnv", pool_entry_pool_env, NULL, IN_SERVER_OR_POOL,
        "An environment variable of the pool's processes: its name, and its value if it is not empty"),
    AP_INIT_TAKE1("PoolUmask", pool_entry_pool_umask, NULL, IN_SERVER_OR_POOL,
        "The umask of the pool's processes, octal"),
    AP_INIT_TAKE2("PoolModuleRole", pool_entry_pool_module_role, NULL, IN_SERVER,
        "In which processes a module's hooks run: x_module or mod_x.c, then frontend, worker or both"),
    AP_INIT_FLAG("PoolStrict", pool_entry_pool_strict, NULL, IN_SERVER,
        "Whether a pool whose user or group is missing keeps httpd from starting and reloading"),
    AP_INIT_TAKE12("AssignServerPool", pool_entry_assign_server_pool, NULL, IN_ASSIGNABLE,
        "The server pool that serves the requests, or none, or none static for plain files only"),

    /*
     * Directives of other modules: httpd gives a directive to every module that lists it, so these handlers see
     * a copy. The arguments are raw, the context is the owner's: the owner alone refuses what is wrong.
     */
    AP_INIT_RAW_ARGS("SSLOptions", pool_entry_ssl_options, NULL, OR_OPTIONS, "see mod_ssl"),
    AP_INIT_RAW_ARGS("SSLRequireSSL", pool_entry_ssl_require, NULL, OR_AUTHCFG, "see mod_ssl"),
    AP_INIT_RAW_ARGS("SSLRequire", pool_entry_ssl_require, NULL, OR_AUTHCFG, "see mod_ssl"),
    AP_INIT_RAW_ARGS("SSLVerifyClient", pool_entry_ssl_verify, NULL, RSRC_CONF | OR_AUTHCFG, "see mod_ssl"),
    AP_INIT_RAW_ARGS("SSLVerifyDepth", pool_entry_ssl_verify, NULL, RSRC_CONF | OR_AUTHCFG, "see mod_ssl"),
    AP_INIT_RAW_ARGS("SSLCipherSuite", pool_entry_ssl_verify, NULL, RSRC_CONF | OR_AUTHCFG, "see mod_ssl"),
    AP_INIT_RAW_ARGS("SSLUserName", pool_entry_ssl_user_name, NULL, RSRC_CONF | OR_AUTHCFG, "see mod_ssl"),
    AP_INIT_RAW_ARGS("FcgidAccessChecker", pool_entry_fcgid_check, NULL, ACCESS_CONF | OR_FILEINFO, "see mod_fcgid"),
    AP_INIT_RAW_ARGS("FcgidAuthenticator", pool_entry_fcgid_check, NULL, ACCESS_CONF | OR_FILEINFO, "see mod_fcgid"),
    AP_INIT_RAW_ARGS("FcgidAuthorizer", pool_entry_fcgid_check, NULL, ACCESS_CONF | OR_FILEINFO, "see mod_fcgid"),
    AP_INIT_RAW_ARGS("FastCgiAccessChecker", pool_entry_fcgid_check, NULL, ACCESS_CONF | OR_FILEINFO, "see mod_fcgid"),
    AP_INIT_RAW_ARGS("FastCgiAuthenticator", pool_entry_fcgid_check, NULL, ACCESS_CONF | OR_FILEINFO, "see mod_fcgid"),
    AP_INIT_RAW_ARGS("FastCgiAuthorizer", pool_entry_fcgid_check, NULL, ACCESS_CONF | OR_FILEINFO, "see mod_fcgid"),
    AP_INIT_RAW_ARGS("WSGIAccessScript", pool_entry_wsgi_check, NULL, OR_AUTHCFG, "see mod_wsgi"),
    AP_INIT_RAW_ARGS("PHPIniDir", pool_entry_php_ini_dir, NULL, RSRC_CONF, "see mod_php"),

    /*
     * What every MPM has. httpd adds a module's directives before it asks the module for its hooks, so that they stand
     * here in any case; beside another MPM their handlers leave them to that one. MaxConnectionsPerChild, MaxMemFree,
     * ThreadStackSize, PidFile, ScoreBoardFile, CoreDumpDirectory and EnableExceptionHook are the core's own.
     */
    AP_INIT_FLAG("PoolMPM", pool_entry_pool_mpm, NULL, IN_SERVER,
        "Whether mod_pool is to be the MPM, so that a configuration that says otherwise is refused"),
    AP_INIT_TAKE_ARGV("Listen", pool_entry_mpm_listen, NULL, RSRC_CONF,
        "A port number or a numeric IP address and a port number, and an optional protocol"),
    AP_INIT_TAKE1("ListenBacklog", pool_entry_mpm_httpd, NULL, RSRC_CONF,
        "Maximum length of the queue of pending connections, as used by listen(2)"),
    AP_INIT_TAKE1("ListenCoresBucketsRatio", pool_entry_mpm_httpd, NULL, RSRC_CONF,
        "Ratio between the number of CPU cores (online) and the number of listeners buckets"),
    AP_INIT_TAKE1("ListenTCPDeferAccept", pool_entry_mpm_httpd, NULL, RSRC_CONF,
        "Seconds that the kernel keeps a connection on which nothing has come, of a listener that waits for data"),
    AP_INIT_TAKE1("SendBufferSize", pool_entry_mpm_httpd, NULL, RSRC_CONF,
        "Send buffer size in bytes"),
    AP_INIT_TAKE1("ReceiveBufferSize", pool_entry_mpm_httpd, NULL, RSRC_CONF,
        "Receive buffer size in bytes"),
    AP_INIT_TAKE1("GracefulShutdownTimeout", pool_entry_mpm_httpd, NULL, RSRC_CONF,
        "Maximum time in seconds to wait for child processes to complete transactions during shutdown"),
    AP_INIT_TAKE1("StartServers", pool_entry_mpm_number, NULL, RSRC_CONF,
        "Number of child processes launched at server startup"),
    AP_INIT_TAKE1("ServerLimit", pool_entry_mpm_number, NULL, RSRC_CONF,
        "Maximum number of child processes for this run of Apache"),
    AP_INIT_TAKE1("MinSpareThreads", pool_entry_mpm_number, NULL, RSRC_CONF,
        "Minimum number of idle threads, to handle request spikes"),
    AP_INIT_TAKE1("MaxSpareThreads", pool_entry_mpm_number, NULL, RSRC_CONF,
        "Maximum number of idle threads"),
    AP_INIT_TAKE1("MaxClients", pool_entry_mpm_number, NULL, RSRC_CONF,
        "Deprecated name of MaxRequestWorkers"),
    AP_INIT_TAKE1("MaxRequestWorkers", pool_entry_mpm_number, NULL, RSRC_CONF,
        "Maximum number of threads alive at the same time"),
    AP_INIT_TAKE1("ThreadsPerChild", pool_entry_mpm_number, NULL, RSRC_CONF,
        "Number of threads each child creates"),
    AP_INIT_TAKE1("ThreadLimit", pool_entry_mpm_number, NULL, RSRC_CONF,
        "Maximum number of worker threads per child process for this run of Apache - Upper limit for ThreadsPerChild"),
    AP_INIT_TAKE1("AsyncRequestWorkerFactor", pool_entry_mpm_number, NULL, RSRC_CONF,
        "How many additional connects will be accepted per idle worker thread"),
    { NULL }
};
