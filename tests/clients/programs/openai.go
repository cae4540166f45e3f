// A program with openai-go: it reads texts from standard input, and prints vectors or an error as one JSON object.
// The server's address, the model and the key come from the environment.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

var (
	baseURL = os.Getenv("BASE_URL")
	model   = os.Getenv("MODEL")
	apiKey  = os.Getenv("API_KEY")
)

func embed(ctx context.Context, texts []string) ([]openai.Embedding, error) {
	// docs: begin
	client := openai.NewClient(option.WithBaseURL(baseURL+"/v1"), option.WithAPIKey(apiKey))
	input := openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: texts}
	answer, err := client.Embeddings.New(ctx, openai.EmbeddingNewParams{Model: model, Input: input})
	if err != nil {
		return nil, err
	}
	return answer.Data, nil // each item has its Embedding
	// docs: end
}

// explain adds the server's message: Error() of this library has the status only.
func explain(err error) string {
	if answered, ok := errors.AsType[*openai.Error](err); ok {
		return fmt.Sprintf("%v: %s", err, answered.Message)
	}
	return err.Error()
}

func main() {
	var texts []string
	if err := json.NewDecoder(os.Stdin).Decode(&texts); err != nil {
		panic(err)
	}
	items, err := embed(context.Background(), texts)
	answer := map[string]any{}
	if err != nil {
		answer["error"] = explain(err)
	} else {
		vectors := make([][]float64, len(items))
		for place, item := range items {
			vectors[place] = item.Embedding
		}
		answer["vectors"] = vectors
	}
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
		panic(err)
	}
}
