// What the rig's own tests run in containers, where there is no shell: a small web server, its client, a look-up,
// a client of instance metadata, a glutton, and sleep.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: toolbox serve ADDRESS | get URL | metadata PATH | lookup NAME | eat MIB | sleep"))
	}
	argument := ""
	if len(os.Args) > 2 {
		argument = os.Args[2]
	}
	switch os.Args[1] {
	case "serve":
		serve(argument)
	case "get":
		client := http.Client{Timeout: 10 * time.Second}
		answer, err := client.Get(argument)
		fail(err)
		defer answer.Body.Close()
		_, err = io.Copy(os.Stdout, answer.Body)
		fail(err)
	case "metadata":
		metadata(argument)
	case "lookup":
		addresses, err := net.LookupHost(argument)
		fail(err)
		for _, address := range addresses {
			fmt.Println(address)
		}
	case "eat":
		eat(argument)
	case "sleep":
		fmt.Println("asleep")
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
		<-signals
		fmt.Println("woken")
	default:
		fail(fmt.Errorf("no command %q", os.Args[1]))
	}
}

// serve answers every request with the pod's name.
func serve(address string) {
	name, err := os.Hostname()
	fail(err)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, name) })
	fmt.Println("serving", address)
	fail(http.ListenAndServe(address, nil))
}

// metadata asks the instance about itself, the second version's way, and prints the status and what it said.
func metadata(path string) {
	const service = "http://169.254.169.254/latest/"
	client := http.Client{Timeout: 3 * time.Second}
	ask := func(method, path, header, value string) (int, string) {
		request, err := http.NewRequest(method, service+path, nil)
		fail(err)
		request.Header.Set(header, value)
		answer, err := client.Do(request)
		fail(err)
		defer answer.Body.Close()
		said, err := io.ReadAll(answer.Body)
		fail(err)
		return answer.StatusCode, string(said)
	}
	_, token := ask("PUT", "api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
	status, said := ask("GET", "meta-data/"+path, "X-aws-ec2-metadata-token", token)
	fmt.Println(status, said)
}

// eat takes memory and touches every page of it.
func eat(mebibytes string) {
	count, err := strconv.Atoi(mebibytes)
	fail(err)
	food := make([]byte, count<<20)
	for i := 0; i < len(food); i += 4096 {
		food[i] = 1
	}
	fmt.Println("eaten", len(food)>>20, "MiB")
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
