package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"tandem/internal/daemon"
	"tandem/proto/adminpb"
)

// defaultSocket is config system tandem's default for admin-socket.
const defaultSocket = "/run/tandem/admin.sock"

// verbs are FortiOS's: everything behind them is the daemon's command table.
var verbs = []struct{ name, short string }{
	{"get", "Show state, e.g. get vpn ipsec tunnel summary"},
	{"diagnose", "Show state in detail, e.g. diagnose vpn tunnel list"},
	{"execute", "Do something, e.g. execute ha failover set 1"},
	{"show", "Print the configuration"},
}

// clientFlags are what a FortiOS command line may carry besides its words.
type clientFlags struct {
	socket         string
	json, showKeys bool
	help           bool
}

// parseWords takes the flags out wherever they stand: words such as -1 are
// FortiOS's own, so this is not cobra's to parse.
func parseWords(args []string) (words []string, f clientFlags, err error) {
	f.socket = os.Getenv("TANDEM_SOCKET")
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--json":
			f.json = true
		case a == "--show-keys":
			f.showKeys = true
		case a == "--help" || a == "-h" || a == "?":
			f.help = true
		case strings.HasPrefix(a, "--socket="):
			f.socket = strings.TrimPrefix(a, "--socket=")
		case a == "--socket":
			if i++; i == len(args) {
				return nil, f, exitError{exitUsage, "--socket wants a path"}
			}
			f.socket = args[i]
		case strings.HasPrefix(a, "--"):
			return nil, f, exitError{exitUsage, fmt.Sprintf("unknown flag %s: --json, --show-keys, --socket PATH and --help are known here", a)}
		default:
			words = append(words, a)
		}
	}
	if f.socket == "" {
		f.socket = defaultSocket
	}
	return words, f, nil
}

func clientCommand(verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " WORDS… [--json] [--show-keys] [--socket PATH]", Short: short, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			words, f, err := parseWords(args)
			if err != nil {
				return err
			}
			words = append([]string{verb}, words...)
			if f.help {
				text, err := daemon.Help(words)
				if err != nil {
					return exitError{exitUsage, err.Error()}
				}
				fmt.Fprint(c.OutOrStdout(), text)
				return nil
			}
			code, err := ask(c.Context(), f, words, c.OutOrStdout(), c.ErrOrStderr())
			switch {
			case err != nil:
				return exitError{exitFailed, err.Error()}
			case code != 0:
				return exitError{code, ""}
			}
			return nil
		},
	}
}

// ask runs words at the daemon behind the socket.
func ask(ctx context.Context, f clientFlags, words []string, stdout, stderr io.Writer) (int, error) {
	probe, err := net.Dial("unix", f.socket)
	if err != nil {
		why := "is tandem running? (tandem run --config FILE; another socket: --socket or TANDEM_SOCKET)"
		if errors.Is(err, fs.ErrPermission) {
			why = "only root may ask"
		}
		return exitFailed, fmt.Errorf("admin socket %s: %w: %s", f.socket, errors.Unwrap(err), why)
	}
	probe.Close()
	conn, err := grpc.NewClient("unix:"+f.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return exitFailed, err
	}
	defer conn.Close()
	code, err := daemon.Execute(ctx, conn, &adminpb.ExecuteRequest{Words: words, Json: f.json, ShowKeys: f.showKeys}, stdout, stderr)
	if s, ok := status.FromError(err); ok && err != nil {
		err = fmt.Errorf("admin socket %s: %s", f.socket, s.Message())
	}
	return code, err
}
